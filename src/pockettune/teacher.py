"""Labels from a teacher: any OpenAI-compatible endpoint, asked once for each row, whatever happens in between."""

import contextlib
import hashlib
import json
import os
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import urlsplit

KEY = "TEACHER_API_KEY"  # in the environment or in Colab's secrets; of its own, so that no other key goes astray
GEMINI = "https://generativelanguage.googleapis.com/v1beta/openai/"
BACKOFF = 1.0  # seconds; doubled with each try, up to a minute
_QUOTA = re.compile(r"insufficient_quota|per.?day|\bdaily\b", re.IGNORECASE)
_BAD_KEY = re.compile(r"API.?KEY", re.IGNORECASE)  # Gemini answers 400 to a wrong one


class Stop(RuntimeError):
    """Why a run ended before its last row; what was labelled until then is in the file."""


class Answer(NamedTuple):
    """What came of one row: its label, or the reason there is none; `paid` if the endpoint answered."""

    label: dict | None
    reason: str
    paid: bool
    tokens: tuple[int, int]  # read and written


def label_rows(
    rows: list[dict],
    task: ModuleType,
    *,
    out: str | Path,
    model: str,
    base_url: str = GEMINI,
    concurrency: int = 4,
    requests_per_minute: float = 60,
    max_failure_share: float = 0.2,
    attempts: int = 6,
    max_tokens: int = 2048,
    prices: str | Path = "data/prices.json",
    dry_run: bool = False,
) -> list[dict]:
    """Have a teacher write `row["output"]` for each row; returns the labelled rows, in order.

    Each label is a line of `out`, appended when it comes: started again, a run asks for what is missing and pays for
    nothing twice, but for the calls that were under way when it was killed. A label counts if the answer is whole and
    the task has no objection to it, after one repair at most; what failed is in `<out>.failed.jsonl`, with the reason. The key
    is read from TEACHER_API_KEY, Colab's secrets, or asked for. `dry_run` prints calls, tokens and cost, and sends nothing.

    Raises Stop (run again to go on) when a daily quota ends, when the endpoint refuses the key or the model, or when
    more than `max_failure_share` of at least ten answers failed; RuntimeError when another process writes the file.
    """
    from filelock import FileLock, Timeout

    out = Path(out)
    side = out.with_name(out.name + ".failed.jsonl")
    price = _price(prices, model)
    keys = [_key(row, task, model) for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{out}.lock", timeout=0):
            done = {line["key"]: line for line in _lines(out)}
            skip = done.keys() | {line["key"] for line in _lines(side) if line["paid"]}
            todo = {key: row for key, row in zip(keys, rows, strict=True) if key not in skip}
            if dry_run:
                _show_cost(todo, task, model, price)
            elif todo:
                teacher = _Teacher(task, model, base_url, requests_per_minute, attempts, max_tokens)
                _run(todo, teacher, out, side, done, concurrency, max_failure_share, price)
    except Timeout:
        raise RuntimeError(f"another process is writing {out.name}: wait for it, or give another file") from None
    return [{**row, "output": done[key]["output"]} for key, row in zip(keys, rows, strict=True) if key in done]


def _run(todo, teacher, out, side, done, concurrency, max_failure_share, price) -> None:
    from tqdm import tqdm  # the one in text: without ipywidgets the other warns, with a path of the machine

    writing, kept = threading.Lock(), len(done)

    def label(key: str, row: dict) -> Answer:
        try:
            answer = teacher(row)
        except Stop as stop:
            teacher.cause = teacher.cause or stop
            teacher.stopped.set()  # at once, before this thread takes the next row
            raise
        with writing:  # here, not where it is counted: a run that stops still keeps what is on its way
            line = {"key": key, "model": teacher.model}
            if answer.label is None:
                _append(side, {**line, "reason": answer.reason, "paid": answer.paid})
            else:
                done[key] = {**line, "input": row["input"], "output": answer.label}
                _append(out, done[key])
        return answer

    refused, read, written = 0, 0, 0
    bar = tqdm(total=kept + len(todo), initial=kept, unit="row", desc=teacher.model)
    with bar, ThreadPoolExecutor(concurrency) as pool:
        pending = [pool.submit(label, key, row) for key, row in todo.items()]
        try:
            for count, future in enumerate(as_completed(pending), 1):
                answer = future.result()
                refused += answer.label is None
                read, written = read + answer.tokens[0], written + answer.tokens[1]
                cost = _cost(price, read, written) if price else "no price known"
                bar.set_postfix_str(f"{refused} without a label, {read + written} tokens, {cost}")
                bar.update()
                if count >= 10 and refused > max_failure_share * count:
                    raise Stop(
                        f"{refused} of {count} answers gave no label, the last one: {answer.reason or 'a good one'}. All "
                        f"reasons are in {side.name}; delete it to ask for those rows again. {out.name} has {len(done)} labels"
                    )
        except BaseException as error:
            cause = teacher.cause if isinstance(error, Stop) else None  # read before the others stop and name their own
            teacher.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise cause or error from None


class _Teacher:
    """One endpoint and one task: called with a row, it answers, waiting and trying again as the endpoint asks."""

    def __init__(self, task, model, base_url, requests_per_minute, attempts, max_tokens):
        from openai import OpenAI

        self.task, self.model, self.attempts, self.max_tokens = task, model, attempts, max_tokens
        self.client = OpenAI(api_key=_api_key(base_url), base_url=base_url, max_retries=0, timeout=120)
        self.structured, self.stopped, self.cause = True, threading.Event(), None
        self.pause, self.next_call, self.lock = 60 / requests_per_minute, 0.0, threading.Lock()

    def __call__(self, row: dict) -> Answer:
        messages = [{"role": "system", "content": self.task.TEACHER}, self.task.to_example(row)["prompt"][-1]]
        read = written = 0
        for last in (False, True):
            reply, reason = self._send(messages)
            if reply is None:
                return Answer(None, reason, read + written > 0, (read, written))
            if usage := reply.usage:
                read += usage.prompt_tokens or 0  # some endpoints leave thinking out of the completion tokens
                written += max(usage.completion_tokens or 0, (usage.total_tokens or 0) - (usage.prompt_tokens or 0))
            choice = reply.choices[0]
            if choice.message.refusal or choice.finish_reason == "content_filter":
                return Answer(None, "the teacher refused", True, (read, written))
            text = _json_in(choice.message.content or "")
            reason = f"the answer ended by {choice.finish_reason!r}" if choice.finish_reason != "stop" else ""
            reason = reason or self.task.objection(text, row)
            if not reason:
                label = json.loads(text)
                with contextlib.suppress(UnicodeEncodeError):
                    json.dumps(label, ensure_ascii=False).encode()
                    return Answer(label, "", True, (read, written))
                reason = "it holds half of a character"
            if not last:
                repair = f"That answer cannot be used: {reason}. Answer again, with the JSON object alone."
                messages = [
                    *messages,
                    {"role": "assistant", "content": text or "-"},
                    {"role": "user", "content": repair},
                ]
        return Answer(None, reason, True, (read, written))

    def _send(self, messages, structured: bool | None = None):
        """One reply, or None and the reason; raises Stop for what no later call can mend."""
        import openai

        structured = self.structured if structured is None else structured
        shape = {"name": "answer", "strict": True, "schema": self.task.SCHEMA}
        extra = {"response_format": {"type": "json_schema", "json_schema": shape}} if structured else {}
        failure = ""
        for attempt in range(1, self.attempts + 1):
            self._wait_for_a_slot()
            asked = None
            try:
                reply = self.client.chat.completions.create(
                    model=self.model, messages=messages, max_tokens=self.max_tokens, **extra
                )
                if isinstance(reply, str):
                    raise Stop("the endpoint answered with a page, not with JSON: check base_url")
                if reply.choices and reply.choices[0].message:
                    return reply, ""
                failure = "a reply without an answer"
            except openai.APIStatusError as error:
                status, body = error.status_code, f"{error.code} {error.body}"
                if status == 429 and _QUOTA.search(body):
                    raise Stop("the endpoint's quota for today is used up: run again to go on, tomorrow") from None
                if status in (400, 422) and not _BAD_KEY.search(body):
                    if not structured:
                        return None, f"the endpoint refused the request ({status})"
                    found = self._send(messages, structured=False)  # perhaps it has no structured output
                    if found[0]:  # that is what it was: no further call asks for it
                        self.structured = False
                    return found
                if status not in (408, 409, 429) and status < 500:  # the text of these may quote the key
                    raise Stop(
                        f"the endpoint answered {status} for model {self.model!r}: check {KEY}, the model's name and "
                        "base_url, then run again"
                    ) from None
                failure, asked = f"answer {status}", _seconds(error.response.headers.get("retry-after"), body)
            except (openai.APIError, json.JSONDecodeError) as error:  # no connection, no time, half a reply
                failure = type(error).__name__
            if attempt < self.attempts:
                wait = asked or random.uniform(0, min(60, BACKOFF * 2**attempt))  # with full jitter
                if wait > 600:
                    raise Stop(f"the endpoint asks to wait {wait:.0f} s: run again to go on, then") from None
                self.stopped.wait(wait)
        return None, f"no answer after {self.attempts} tries ({failure})"

    def _wait_for_a_slot(self) -> None:
        with self.lock:
            start = max(self.next_call, time.monotonic())
            self.next_call = start + self.pause
        if self.stopped.wait(max(0.0, start - time.monotonic())):
            raise Stop("the run was stopped: run again to go on")


def _seconds(header: str | None, body: str = "") -> float | None:
    """The seconds a Retry-After header asks for, as a number or a date, or Gemini's retryDelay in the body.

    >>> _seconds("2"), _seconds("Wed, 21 Oct 2015 07:28:00 GMT"), _seconds(None, "'retryDelay': '31s'"), _seconds("soon")
    (2.0, 0.1, 31.0, None)
    """
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    if found := re.search(r"retryDelay\W+([\d.]+)s", body):
        return float(found[1])
    with contextlib.suppress(TypeError, ValueError):
        return max(0.1, float(header))
    with contextlib.suppress(TypeError, ValueError):
        return max(0.1, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    return None


def _json_in(text: str) -> str:
    """The JSON object an answer ends in, without the thinking or the code fence around it.

    >>> _json_in('<think>a {b}</think>```json\\n{"a": 1}\\n```'), _json_in('{"a": 1} and more')
    ('{"a": 1}', '{"a": 1} and more')
    """
    text = text.rpartition("</think>")[2].strip().removesuffix("```").strip()
    found = re.search(r'\{\s*"(?:.|\n)*\}$', text)
    return found[0] if found else text


def _api_key(base_url: str) -> str:
    """The key from the environment, from Colab's secrets, or asked for; a server on this machine needs none."""
    from getpass import getpass

    host = urlsplit(base_url).hostname
    key = os.environ.get(KEY, "").strip()
    if not key and host in ("localhost", "127.0.0.1", "::1"):
        return "none"
    if not key and os.environ.get("COLAB_RELEASE_TAG"):
        from google.colab import userdata

        found: list[str] = []
        # It waits for a click without end where nobody looks.
        reader = threading.Thread(target=lambda: found.append(userdata.get(KEY)), daemon=True)
        reader.start()
        reader.join(20)
        key = (found or [""])[0].strip()
    if not key:
        with contextlib.suppress(Exception):  # nobody there to type it
            key = getpass(f"{KEY} for {host}: ").strip()
    if not key or not key.isascii():
        raise RuntimeError(f"no usable key: set {KEY} in the environment, or in Colab's secrets")
    return key


def _key(row: dict, task: ModuleType, model: str) -> str:
    """What makes a label the same: the row's fields that are sent, the prompt and the model."""
    sent = [task.TEACHER, task.SCHEMA, task.to_example(row)["prompt"][-1]["content"], model]
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()[:24]


def _lines(path: Path) -> list[dict]:
    """The lines of a file of labels, after mending what a killed run left of the last."""
    if not path.exists():
        return []
    *whole, tail = path.read_bytes().split(b"\n")
    cut = tail.startswith(b'{"key"'[: len(tail)]) and not _is_json(tail)
    try:
        found = [json.loads(line) for line in [*whole, b"" if cut else tail] if line.strip()]
        if any("key" not in line for line in found):
            raise ValueError
    except (ValueError, TypeError):
        raise ValueError(f"{path.name} holds other things than labels: give another file") from None
    if tail and not cut:  # a whole line whose end an editor took
        _write(path, b"\n")
    elif tail:
        os.truncate(path, path.stat().st_size - len(tail))
    return found


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _append(path: Path, line: dict) -> None:
    _write(path, json.dumps(line, ensure_ascii=False).encode() + b"\n")


def _write(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        start = file.tell()
        try:
            file.write(content)
            file.flush()
        except OSError:  # a full disk: no half line stays
            file.truncate(start)
            raise
        os.fsync(file.fileno())


def _price(prices: str | Path, model: str) -> dict | None:
    known = json.loads(Path(prices).read_text(encoding="utf-8"))["apis"] if Path(prices).is_file() else []
    return next((entry for entry in known if entry["model"] == model), None)


def _cost(price: dict, read: int, written: int) -> str:
    cost = (read * price["input_per_million"] + written * price["output_per_million"]) / 1e6
    return f"{'$' if price['currency'] == 'USD' else '¥'}{cost:.4f}"


def _show_cost(todo: dict, task: ModuleType, model: str, price: dict | None) -> None:
    """Print what a run would send, at four characters a token, and cost."""
    read = sum(len(task.TEACHER) + len(task.to_example(row)["prompt"][-1]["content"]) for row in todo.values()) // 4
    written = 100 * len(todo)
    print(f"{len(todo)} calls to {model}, about {read} tokens read and {written} written", end="")
    if price:
        print(f": {_cost(price, read, written)} at the price of {price['read']}, more if the model thinks first")
    else:
        print("; data/prices.json has no price for it")
