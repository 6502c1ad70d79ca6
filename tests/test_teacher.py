"""The teacher: a real HTTP server on loopback speaks the API and misbehaves; nothing is lost, nothing is paid twice."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from endpoint import Server, error, good, reply

from pockettune import label_rows, teacher
from pockettune.sources import strava
from pockettune.tasks import roast

RUN = {"activity": "Run", "distance_km": 3.0, "pace": "6:00/km", "elevation_gain_m": 4, "recent_runs": []}


def rows(n):
    return [
        {"input": RUN | {"date": f"2024-{i // 28 + 1:02d}-{i % 28 + 1:02d}", "distance_km": 3 + i}} for i in range(n)
    ]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv(teacher.KEY, "sk-canary-key")
    monkeypatch.setattr(teacher, "BACKOFF", 0.01)
    made = Server()
    yield made
    made.http.shutdown()


def label(server, n=1, tmp_path=None, **options):
    options = {"concurrency": 1, "requests_per_minute": 60_000, **options}
    return label_rows(rows(n), roast, out=tmp_path / "labels.jsonl", model="m", base_url=server.url, **options)


def failures(tmp_path):
    return [json.loads(line)["reason"] for line in (tmp_path / "labels.jsonl.failed.jsonl").read_text().splitlines()]


def test_rows_are_labelled_in_order_and_a_second_run_sends_nothing(server, tmp_path, capfd):
    labelled = label(server, 12, tmp_path, concurrency=4)
    assert [row["input"] for row in labelled] == [row["input"] for row in rows(12)] and len(server.requests) == 12
    assert all(set(row["output"]) == {"summary", "reflection"} for row in labelled)
    assert label(server, 12, tmp_path) == labelled and len(server.requests) == 12
    assert label(server, 13, tmp_path)[:12] == labelled and len(server.requests) == 13
    shown = "".join(capfd.readouterr())
    assert "0 without a label, 1440 tokens" in shown and "sk-canary-key" not in shown
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "sk-canary-key" not in written and server.headers[0]["authorization"] == "Bearer sk-canary-key"


def test_the_teacher_is_told_the_rules_the_facts_and_the_schema(server, tmp_path):
    label(server, 1, tmp_path)
    (request,) = server.requests
    system, user = (message["content"] for message in request["messages"])
    assert "Never about the runner's body" in system and "3 km at 6:00/km" in user and "first run on record" in user
    assert request["response_format"]["json_schema"]["schema"] == roast.SCHEMA


def test_the_same_row_twice_is_asked_once_and_a_label_that_came_twice_counts_once(server, tmp_path):
    out = tmp_path / "labels.jsonl"
    labelled = label_rows(rows(1) * 3, roast, out=out, model="m", base_url=server.url)
    assert len(labelled) == 3 and len(server.requests) == 1
    out.write_text(2 * out.read_text())
    assert label(server, 1, tmp_path) == labelled[:1] and len(server.requests) == 1


THINKING = '<think>a {"summary"} b</think>\n```json\n' + good() + "\n```"
TROUBLE = {  # what the endpoint does first, and how many calls it takes to get a label all the same
    "429": ([error(429)], 2),
    "retry-date": ([error(429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})], 2),
    "per minute": ([error(429, message="check your plan and billing", quotaId="RequestsPerMinute")], 2),
    "5xx": ([error(500), error(503), error(408)], 4),
    "cut": (["cut"], 2),
    "drip": ([("drip", reply(good()))], 1),
    "no choices": ([(200, {}, {"error": {"message": "overloaded"}})], 2),
    "thinking": ([reply(THINKING)], 1),
    "capped": ([reply(good(), finish="length")], 2),
    "truncated": ([reply(good()[:-9])], 2),
    "false": ([reply(json.dumps({"summary": "It was 99 km.", "reflection": "Noted."}))], 2),
    "half a character": ([reply('{"summary": "A run.", "reflection": "\\ud83d"}')], 2),
    "unstructured": ([error(400, message="response_format is not supported")], 2),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_what_can_be_mended_is_mended(server, tmp_path, name):
    script, calls = TROUBLE[name]
    server.script = list(script)
    (row,) = label(server, 1, tmp_path)
    assert set(row["output"]) == {"summary", "reflection"} and len(server.requests) == calls
    assert not (tmp_path / "labels.jsonl.failed.jsonl").exists()


def test_an_endpoint_without_structured_output_is_asked_for_it_once(server, tmp_path):
    server.script = [error(400, message="response_format is not supported")]
    label(server, 3, tmp_path)
    assert ["response_format" in request for request in server.requests] == [True, False, False, False]


def test_one_refused_request_does_not_end_structured_output(server, tmp_path):
    server.script = [error(400), error(400)]
    assert len(label(server, 2, tmp_path)) == 1 and "refused the request (400)" in failures(tmp_path)[0]
    assert "response_format" in server.requests[-1]


def test_delays_are_read_from_headers_and_bodies(server, tmp_path):
    assert teacher._seconds(None, str({"retryDelay": "0.4s"})) == 0.4
    server.script = [error(429, {"retry-after": "3600"})]
    with pytest.raises(teacher.Stop, match="asks to wait 3600 s"):
        label(server, 1, tmp_path)


def test_retry_after_is_honoured(server, tmp_path):
    server.script = [error(429, {"retry-after": "0.7"})]
    label(server, 1, tmp_path)
    assert server.times[1] - server.times[0] >= 0.7


def test_a_repair_says_what_was_wrong(server, tmp_path):
    server.script = [reply(json.dumps({"summary": "It was 99 km.", "reflection": "Noted."}))]
    label(server, 1, tmp_path)
    assert "these do not follow from the run: 99 km" in server.requests[1]["messages"][-1]["content"]


def test_refusals_and_faults_that_stay_are_kept_with_the_reason_and_not_paid_again(server, tmp_path):
    server.script = [reply(None, refusal="I cannot"), reply("", finish="content_filter"), reply("no"), reply("no")]
    assert len(label(server, 4, tmp_path)) == 1
    assert failures(tmp_path) == ["the teacher refused"] * 2 + [
        'it is not one JSON object of two strings, "summary" and "reflection"'
    ]
    asked = len(server.requests)
    label(server, 4, tmp_path)
    assert len(server.requests) == asked


def test_no_answer_at_all_is_asked_again_by_the_next_run(server, tmp_path):
    server.script = [error(500)] * 3
    assert label(server, 1, tmp_path, attempts=3) == [] and "no answer after 3 tries" in failures(tmp_path)[0]
    assert len(label(server, 1, tmp_path)) == 1


def test_a_daily_quota_ends_the_run_cleanly_and_it_goes_on_later(server, tmp_path):
    server.script = [reply(good()), error(429, code="insufficient_quota")]
    with pytest.raises(teacher.Stop, match="run again to go on"):
        label(server, 5, tmp_path)
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 1 and len(server.requests) == 2
    assert len(label(server, 5, tmp_path)) == 5 and len(server.requests) == 6


@pytest.mark.parametrize(
    "fault",
    [
        error(401, message="Incorrect API key provided: sk-canary-key"),
        error(400, message="API key not valid: sk-canary-key", reason="API_KEY_INVALID"),
        error(404),
        (200, {"content-type": "text/html"}, "<html>"),
    ],
    ids=["401", "gemini's 400", "404", "a page"],
)
def test_what_no_later_call_can_mend_stops_at_once_and_quotes_no_key(server, tmp_path, fault):
    server.script = [fault] * 8
    with pytest.raises(teacher.Stop, match="check") as stopped:
        label(server, 30, tmp_path, concurrency=4)
    assert "canary" not in str(stopped.value) and len(server.requests) <= 4
    assert stopped.value.__suppress_context__ or stopped.value.__context__ is None


def test_too_many_failures_stop_the_run_and_say_why(server, tmp_path):
    server.script = [reply(None, refusal="no")] * 30
    with pytest.raises(teacher.Stop, match=r"10 of 10 answers gave no label.*the teacher refused"):
        label(server, 30, tmp_path)
    assert len(server.requests) < 15


def test_calls_keep_to_the_rate(server, tmp_path):
    label(server, 6, tmp_path, requests_per_minute=600, concurrency=6)
    assert server.times[-1] - server.times[0] >= 0.45


def test_two_processes_cannot_write_one_file(server, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / "labels.jsonl.lock"), pytest.raises(RuntimeError, match="another process is writing"):
        label(server, 1, tmp_path)


def test_another_file_is_not_touched(server, tmp_path):
    for text in ('{"a": 1}', '{"a": 1}\n', "[1]\n", "words"):
        (tmp_path / "labels.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"labels.jsonl holds other things than labels"):
            label(server, 1, tmp_path, dry_run=True)
        assert (tmp_path / "labels.jsonl").read_text() == text


def test_a_label_whose_line_end_is_lost_is_kept(server, tmp_path):
    label(server, 2, tmp_path)
    file = tmp_path / "labels.jsonl"
    file.write_text(file.read_text().rstrip("\n"))
    assert len(label(server, 3, tmp_path)) == 3 and len(server.requests) == 3
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 3


def test_another_model_prompt_or_schema_is_another_label(server, tmp_path, monkeypatch):
    label(server, 1, tmp_path)
    label_rows(rows(1), roast, out=tmp_path / "labels.jsonl", model="other", base_url=server.url)
    monkeypatch.setattr(roast, "TEACHER", "Be kind.")
    label(server, 1, tmp_path)
    assert len(server.requests) == 3


def test_a_dry_run_prints_the_cost_and_sends_nothing(server, tmp_path, root, capsys):
    options = {
        "out": tmp_path / "l.jsonl",
        "base_url": server.url,
        "dry_run": True,
        "prices": root / "data/prices.json",
    }
    assert label_rows(rows(200), roast, model="gemini-3.8-flash", **options) == [] and not server.requests
    assert "200 calls to gemini-3.8-flash" in (shown := capsys.readouterr().out) and "price of 2026-10-07" in shown
    assert 0.08 < float(shown.partition("$")[2].split()[0]) < 0.16
    label_rows(rows(1), roast, model="unheard-of", **options)
    assert "no price for it" in capsys.readouterr().out


def test_nothing_but_the_run_record_leaves_the_machine(server, tmp_path, root):
    """Every other column of an export, and every other key of a row, holds a canary."""
    import csv

    with (root / "data/strava_export/activities.csv").open(encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    kept = {"Activity Date", "Activity Type", "Elapsed Time", "Moving Time", "Distance", "Elevation Gain"}
    lines = [
        [cell if name in kept else f"CANARY {name}" for name, cell in zip(header, line, strict=True)] for line in lines
    ]
    with (tmp_path / "activities.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    runs = [{"input": run, "notes": "CANARY"} for run in strava.read_export(tmp_path / "activities.csv")]
    assert len(label_rows(runs, roast, out=tmp_path / "l.jsonl", model="m", base_url=server.url)) == len(runs) > 5
    assert "CANARY" not in json.dumps(server.requests) + json.dumps(server.headers)


def test_the_key_is_asked_for_where_it_is_not_set_and_never_for_a_local_server(monkeypatch):
    monkeypatch.delenv(teacher.KEY, raising=False)
    assert teacher._api_key("http://localhost:8080/v1") == "none"
    monkeypatch.setattr("getpass.getpass", lambda prompt: f"typed for {prompt}")
    assert teacher._api_key("https://api.example/v1") == "typed for TEACHER_API_KEY for api.example:"
    monkeypatch.setattr("getpass.getpass", lambda prompt: 1 / 0)
    with pytest.raises(RuntimeError, match="set TEACHER_API_KEY"):
        teacher._api_key("https://api.example/v1")


def test_colab_s_secrets_are_read_with_a_time_limit(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.delenv(teacher.KEY, raising=False)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    found = SimpleNamespace(get=lambda name: f"secret {name}")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(userdata=found))
    assert teacher._api_key("https://api.example") == "secret TEACHER_API_KEY"
    found.get = lambda name: time.sleep(60)
    monkeypatch.setattr(
        threading.Thread, "join", lambda self, timeout=None, join=threading.Thread.join: join(self, 0.1)
    )
    monkeypatch.setattr("getpass.getpass", lambda prompt: "typed")
    assert teacher._api_key("https://api.example") == "typed"


def test_killed_at_any_moment_it_ends_in_the_same_file_and_pays_once(server, tmp_path):
    """kill -9 at random moments; an answer depends on the row alone, so the labels must equal an undisturbed run's."""

    def answer(handler, step, send=server.answer):
        time.sleep(0.02)
        send(
            handler,
            reply(
                json.dumps(
                    {
                        "summary": "A run took place.",
                        "reflection": handler.request_body["messages"][1]["content"].splitlines()[-1].title(),
                    }
                )
            ),
        )

    server.answer = answer
    out = tmp_path / "labels.jsonl"
    script = (
        "from pockettune import label_rows; from pockettune.tasks import roast; import json, sys;"
        "label_rows(json.loads(sys.argv[1]), roast, out=sys.argv[2], model='m', base_url=sys.argv[3], concurrency=2,"
        " requests_per_minute=60000)"
    )
    command = [sys.executable, "-c", script, json.dumps(rows(60)), str(out), server.url]
    draw, middle, kills = random.Random(1), 0, 0
    for _ in range(40):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        asked = len(server.requests)
        while process.poll() is None and len(server.requests) == asked:
            time.sleep(0.01)  # until it is past its imports
        try:
            process.wait(draw.uniform(0.0, 0.15))
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            middle += 0 < len(out.read_bytes().splitlines()) < 60 if out.exists() else 0
            with out.open("ab") as file:  # what a kill in the middle of a line leaves
                file.write(b'{"key": "half a li')
    labelled = label(server, 60, tmp_path)
    asked = len(server.requests)
    lines = {line["key"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert middle >= 3 and len(lines) == 60 == len(out.read_text().splitlines()), "a row was labelled twice, or none"
    assert asked <= 60 + 2 * kills, "more was paid twice than was under way at a kill"
    options = {"model": "m", "base_url": server.url, "requests_per_minute": 60_000}
    undisturbed = label_rows(rows(60), roast, out=tmp_path / "again.jsonl", **options)
    assert labelled == undisturbed
