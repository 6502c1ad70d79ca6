"""Rows in and out, and splits."""

import pytest

from pockettune import load_rows, save_rows, split_rows, to_dataset


def test_rows_survive_the_round_trip(tmp_path):
    rows = [{"text": '你好 \u2028 "quoted"\n'}, {"n": 1}]
    assert load_rows(save_rows(tmp_path / "new" / "rows.jsonl", rows)) == rows
    assert load_rows(tmp_path / "new" / "rows.jsonl", limit=1) == rows[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a": 1}\n{"secret": oops}\n', "line 2: not JSON"), ("[1]\n", "found list"), ("\n\n", "holds no rows")],
)
def test_a_bad_file_is_named_by_line_and_never_quoted(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_rows(tmp_path / "bad.jsonl")
    assert "secret" not in str(error.value)


def test_a_missing_file_says_so_without_the_whole_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file rows.jsonl") as error:
        load_rows(tmp_path / "rows.jsonl")
    assert str(tmp_path.parent) not in str(error.value)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = save_rows(tmp_path / "rows.jsonl", [{"a": 1}])
    with pytest.raises(TypeError):
        save_rows(path, [{"a": 2}, {"a": object()}])
    assert load_rows(path) == [{"a": 1}] and [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_splits_are_reproducible_and_keep_groups_together():
    rows = [{"day": d, "i": i} for i, d in enumerate("aabbccddee" * 3)]
    train, held_out = split_rows(rows, 0.2, group=lambda row: row["day"])
    assert (train, held_out) == split_rows(rows, 0.2, group=lambda row: row["day"])
    assert not {r["day"] for r in train} & {r["day"] for r in held_out}
    assert len(train) + len(held_out) == len(rows) and 0 < len(held_out) <= 12
    assert split_rows(rows, 0.2, seed=1)[1] != split_rows(rows, 0.2, seed=2)[1]


def test_a_split_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least 2 groups"):
        split_rows([{"a": 1}, {"a": 1}], group=lambda row: row["a"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_rows([{"a": 1}, {"a": 2}], eval_fraction=10)


def test_to_dataset_keeps_messages_in_order():
    made = to_dataset([{"x": "1"}], lambda row: {"prompt": [{"role": "user", "content": row["x"]}], "completion": []})
    assert made[0]["prompt"] == [{"role": "user", "content": "1"}]
