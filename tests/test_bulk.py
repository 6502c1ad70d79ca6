"""Files of any size: every row once, whatever happens on the way, and nothing dropped in silence."""

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from pyarrow import Table, parquet

from pockettune import load_rows, save_rows
from pockettune.bulk import Extractor, extract

KILLS = int(os.environ.get("KILLS", "6"))


def answers(folder, form="jsonl") -> list[dict]:
    return [row for path in sorted(folder.glob(f"part-*.{form}")) for row in load_rows(path)]


@pytest.fixture(scope="module")
def texts(root):
    return [row["input"] for row in load_rows(root / "data/complaints_eval.jsonl", 120)]


def test_a_row_for_each_row_and_failures_beside_them(tmp_path, texts):
    lines = [json.dumps({"id": i, "input": text}, ensure_ascii=False) for i, text in enumerate(texts[:5])]
    lines += ["{oops", '{"id": 6, "input": " "}', '{"id": 7, "input": "\\ud800"}', '{"id": 8}', lines[0]]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    manifest = extract(tmp_path / "in.jsonl", tmp_path / "out", "rules", keep=("id",), shard_rows=4)
    rows = answers(tmp_path / "out")
    assert [row["row"] for row in rows] == list(range(10)) and [row["id"] for row in rows[:5]] == list(range(5))
    assert {k: rows[0][k] for k in rows[0] if k not in ("row", "id")} == {
        k: rows[9][k] for k in rows[9] if k not in ("row", "id")
    }
    failed = [r for path in sorted((tmp_path / "out").glob("failed-*")) for r in load_rows(path)]
    assert [(f["row"], f["reason"].split(" (")[0]) for f in failed] == [
        (5, "not JSON"),
        (6, "the column 'input' holds no text"),
        (7, "the text holds half of a character"),
        (8, "no column 'input' among 1"),
    ]
    assert [shard["failed"] for shard in manifest["shards"]] == [0, 3, 1]
    assert all(row["question"] is None and not row["valid"] for row in rows if row["reason"])
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".answers")]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_in_and_parquet_out(tmp_path, texts, suffix):
    source = tmp_path / f"in.{suffix}"
    if suffix == "parquet":
        parquet.write_table(Table.from_pylist([{"编号": i, "内容": text} for i, text in enumerate(texts)]), source)
    else:
        import csv

        with source.open("w", encoding="gb18030", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["编号", "内容"], *enumerate(texts)])
    extract(source, tmp_path / "out", "rules", text="内容", keep=("编号",), shard_rows=50, file_format="parquet")
    rows = answers(tmp_path / "out", "parquet")
    assert len(rows) == len(texts) and [row["编号"] for row in rows] == [str(i) for i in range(len(texts))]
    for row, text in zip(rows, texts, strict=True):
        found = {k: row[k] for k in ("name", "address", "email", "question")}
        assert found == json.loads(Extractor("rules").task.by_rules({"input": text}))


def run(source, out, *more):
    command = [sys.executable, "-m", "pockettune.bulk", source, out, "--model", "rules", "--shard-rows", "500", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_any_moment_it_ends_as_if_undisturbed(tmp_path, texts):
    """`KILLS=50` kills it fifty times."""
    rows = [{"input": f"{texts[i % len(texts)]}{i // 2}"} for i in range(3000 * KILLS)]  # each text twice
    source, rng, kills = save_rows(tmp_path / "in.jsonl", rows), random.Random(7), 0
    manifest, done = tmp_path / "out" / "manifest.json", [0]

    def whole() -> int:
        return len(json.loads(manifest.read_text())["shards"]) if manifest.exists() else 0

    while kills < KILLS:
        process = run(source, tmp_path / "out")
        while process.poll() is None and whole() == done[-1]:
            time.sleep(0.005)  # until it is at work
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
        kills += 1
        done.append(whole())
    assert done == sorted(set(done)) and done[-1] < 6 * KILLS, done  # each kill found it at work
    again = run(source, tmp_path / "out")
    assert f"{len(rows)} rows, 0 without an answer" in again.communicate()[0]
    extract(source, tmp_path / "whole", "rules", shard_rows=500)
    names = sorted(path.name for path in (tmp_path / "whole").glob("part-*"))
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] == "p")
    assert all((tmp_path / "out" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)
    left = {path.name for path in (tmp_path / "out").iterdir()} - set(names)
    assert left == {"manifest.json", ".lock"}


def test_a_full_disk_stops_it_and_it_goes_on(tmp_path, texts, monkeypatch):
    source = save_rows(tmp_path / "in.jsonl", [{"input": text} for text in texts])
    asked, replace = [], os.replace

    def full(old, new):
        if "part-000001" in str(new):
            raise OSError(28, "No space left on device")
        return replace(old, new)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RuntimeError, match="shard 000001 could not be written .No space left") as error:
        extract(source, tmp_path / "out", "rules", shard_rows=50)
    assert str(tmp_path) not in str(error.value)
    assert sorted(path.name for path in (tmp_path / "out").glob("part*")) == ["part-000000.jsonl"]
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Extractor, "_answer", counting(Extractor._answer, asked))
    extract(source, tmp_path / "out", "rules", shard_rows=50)
    assert len(answers(tmp_path / "out")) == len(texts)
    assert len(asked) == len(set(texts[100:]))  # those of the second shard were on disk already


def counting(answer, asked: list):
    def counted(self, rows):
        asked.extend(rows)
        return answer(self, rows)

    return counted


def test_identical_texts_are_answered_once(tmp_path, texts, monkeypatch):
    asked = []
    monkeypatch.setattr(Extractor, "_answer", counting(Extractor._answer, asked))
    source = save_rows(tmp_path / "in.jsonl", [{"input": text} for text in texts[:7] * 5])
    extract(source, tmp_path / "out", "rules", shard_rows=10)
    assert len(asked) == 7 and len(answers(tmp_path / "out")) == 35


def test_another_source_setting_or_process_is_refused(tmp_path, texts):
    source = save_rows(tmp_path / "in.jsonl", [{"input": text} for text in texts[:3]])
    extract(source, tmp_path / "out", "rules")
    with pytest.raises(ValueError, match="out was begun with another shard_rows: choose another folder"):
        extract(source, tmp_path / "out", "rules", shard_rows=2)
    save_rows(source, [{"input": "x"}])
    with pytest.raises(ValueError, match="another source_sha256, rows"):
        extract(source, tmp_path / "out", "rules")
    with pytest.raises(ValueError, match="has no column 内容 among 1 .has it a header"):
        extract(source, tmp_path / "new", "rules", text="内容")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds letter.txt and no manifest"):
        extract(source, tmp_path / "mine", "rules")
    from filelock import FileLock

    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(RuntimeError, match="another process is writing to out"):
        extract(source, tmp_path / "out", "rules")


def test_what_a_source_may_hold(tmp_path, texts):
    """A quote that is never closed, an instruction that is no text, half a character in columns that are kept, a late key."""
    (tmp_path / "in.csv").write_text('id,input\n1,"家住一楼"\n2,"x\n3,y\n4,z\n', encoding="utf-8")
    extract(tmp_path / "in.csv", tmp_path / "csv", "rules", keep=["id"])
    assert [row["reason"] for row in answers(tmp_path / "csv")] == [None, "unexpected end of data (lines 3 to 5)"]
    lines = [
        '{"input": "x", "tags": ["\\ud800"]}',
        '{"input": "y", "instruction": 5}',
        '{"input": "z", "id": "\\ud800"}',
    ]
    lines += ["[" * 100_000]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, '{"n": ' + "9" * 5000 + "}"]), encoding="utf-8")
    extract(tmp_path / "in.jsonl", tmp_path / "out", "rules", keep=["id", "tags"])
    rows = answers(tmp_path / "out")
    assert [row["id"] for row in rows] == [None, None, "?", None, None] and rows[0]["tags"] == ["?"]
    assert not rows[0]["reason"] and not rows[2]["reason"]
    assert rows[1]["reason"] == "the column 'instruction' holds no text"
    assert all("not JSON that can be read" in row["reason"] for row in rows[3:])


def test_texts_never_reach_a_message(tmp_path):
    (tmp_path / "in.csv").write_text("7,我是周敏，家住无锡\n8,我是李明\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no column input among 2") as error:
        extract(tmp_path / "in.csv", tmp_path / "out", "rules")
    assert "周敏" not in str(error.value)


def test_an_emptied_folder_holds_no_answers_of_another_model(tmp_path, texts, monkeypatch):
    source, answer = save_rows(tmp_path / "in.jsonl", [{"input": text} for text in texts[:4]]), Extractor._answer
    monkeypatch.setattr(Extractor, "_answer", lambda self, rows: 1 / 0 if len(rows) == 1 else answer(self, rows))
    with pytest.raises(ZeroDivisionError):  # in the last shard
        extract(source, tmp_path / "out", "rules", shard_rows=3)
    for path in tmp_path.glob("out/[!.]*"):
        path.unlink()
    asked = []
    monkeypatch.setattr(Extractor, "_answer", counting(answer, asked))
    extract(source, tmp_path / "out", "rules", shard_rows=3)
    assert len(asked) == 4


def test_columns_and_limits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a column name, row is the result's own"):
        Extractor("rules", keep=("row", "name", "id"))
    with pytest.raises(ValueError, match="max_seq_length=256 leaves no room for a prompt before 256 new tokens"):
        Extractor("rules", max_seq_length=256)


def test_memory_does_not_grow_with_the_file(tmp_path, texts):
    """40,000 rows, held in memory, would take some 50 MB more than 10,000."""
    peaks = []
    for n in (10_000, 40_000):
        source = save_rows(tmp_path / f"{n}.jsonl", ({"input": f"{texts[i % 100]}{i}"} for i in range(n)))
        code = "import re, sys; from pathlib import Path; from pockettune.bulk import extract\n"
        code += "extract(*sys.argv[1:3], 'rules'); print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
        command = [sys.executable, "-c", code, source, tmp_path / f"out{n}"]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] + 20_000, peaks  # kB


def test_a_model_answers_and_what_it_cannot_answer_is_named(tmp_path, texts, loaded, monkeypatch):
    """The real Gemma, held to the grammar; too long, cut off, and one row that breaks a batch."""
    from pockettune import models

    model, tokenizer = loaded
    monkeypatch.setattr(models, "load_model", lambda *args, **options: (model, tokenizer))
    rows = [{"input": "王敏，电梯坏了。"}, {"input": "很" * 400}, {"input": texts[0]}, {"input": "坏行"}]
    extractor = Extractor("embedded/gemma-3-270m", max_new_tokens=40, max_seq_length=300)
    grammar = extractor.task.grammar
    monkeypatch.setattr(extractor.task, "grammar", lambda row: "no grammar" if row["input"] == "坏行" else grammar(row))
    made = extractor(rows)
    assert made[0]["valid"] and made[0]["grounded"] and made[0]["reason"] is None
    assert made[1]["reason"].startswith("too long: 4") and made[1]["reason"].endswith("at most 260 fit")
    assert made[2]["reason"] in (None, "cut off after 40 tokens")
    assert made[3]["reason"] == "not answered (ValueError)" and not made[3]["valid"]
    assert made[0]["model"] == "embedded/gemma-3-270m" and len(made[0]["prompt"]) == 16
    assert extractor(rows[3:])[0]["reason"] == "not answered (ValueError)"  # alone in its shard too
    monkeypatch.setattr(extractor.task, "grammar", lambda row: "no grammar")
    with pytest.raises(ValueError, match="cannot read the grammar"):  # it is not the row: the job ends
        extractor(rows[:1])


def test_the_command_says_what_is_wrong_in_a_line(tmp_path):
    done = run(tmp_path / "none.csv", tmp_path / "out")
    assert done.communicate()[1].strip().startswith("no file none.csv in ") and done.returncode == 1


def test_ray_gives_the_same_rows_and_a_killed_worker_loses_none(tmp_path, texts):
    """Two workers on this machine; one is killed on the way."""
    rows, source = [{"id": i, "input": f"{texts[i % 100]}{i}"} for i in range(6_000)], tmp_path / "in.parquet"
    parquet.write_table(Table.from_pylist(rows), source)
    extract(source, tmp_path / "plain", "rules", keep=("id",), file_format="parquet")
    script = tmp_path / "cluster.py"
    script.write_text(KILLED_WORKER)
    done = subprocess.run(
        [sys.executable, script, source, tmp_path / "ray"], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0 and "killed 1" in done.stdout, done.stderr[-2000:]
    assert "{'rows': 6000, 'failed': 0}" in done.stdout
    found = [row for path in (tmp_path / "ray").glob("*.parquet") for row in load_rows(path)]
    plain = answers(tmp_path / "plain", "parquet")
    assert len(found) == len(rows)
    assert sorted(found, key=lambda row: int(row["id"])) == [{k: row[k] for k in row if k != "row"} for row in plain]


KILLED_WORKER = """
import os, signal, sys, threading, time
import psutil, ray
from pockettune.bulk import extract_with_ray

def kill():
    while True:
        for process in psutil.process_iter(["cmdline"]):
            if any("ray::MapWorker" in word for word in process.info["cmdline"] or []):
                time.sleep(0.5)
                os.kill(process.pid, signal.SIGKILL)
                print("killed 1", flush=True)
                return
        time.sleep(0.1)

ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
threading.Thread(target=kill, daemon=True).start()
print(extract_with_ray(sys.argv[1], sys.argv[2], "rules", workers=2, batch_rows=100, keep=("id",)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's")
def test_memory_that_was_freed_goes_back_to_the_system():
    """A process of its own, since the heap of this one is in use."""
    code = """
import ctypes, psutil
from pockettune.environment import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(1000) for _ in range(100_000)]
for block in blocks: ctypes.memset(ctypes.c_void_p(block), 1, 1000)
for block in blocks[:-1]: libc.free(block)
before = psutil.Process().memory_info().rss
keep_freed_memory(False)
print((before - psutil.Process().memory_info().rss) // 1_000_000)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout.splitlines()[-1]) > 50
