"""Whether to tune at all: known sums, the verdicts, old prices, files with something missing, and the plot."""

import json
from datetime import date, timedelta

import matplotlib
import pytest

from pockettune import plot_break_even, should_i_tune
from pockettune.costs import _FIELDS

matplotlib.use("Agg")
TODAY = date(2026, 11, 22)
DATED = {"source": "https://example.com/prices", "read": "2026-11-01", "note": "made up"}


def listing() -> dict:
    return {
        "apis": [
            {
                "model": "cheap",
                "provider": "A",
                "input_per_million": 2,
                "output_per_million": 10,
                "currency": "CNY",
                **DATED,
            },
            {
                "model": "dear",
                "provider": "B",
                "input_per_million": 4,
                "output_per_million": 20,
                "currency": "USD",
                **DATED,
            },
        ],
        "machines": [{"machine": "box", "provider": "C", "per_hour": 3.6, "currency": "CNY", **DATED}],
        "yuan_per_dollar": {"rate": 5, **DATED},
    }


@pytest.fixture
def ask(tmp_path):
    def ask(rows_per_month=20_000, listed=None, **options):
        file = tmp_path / "prices.json"
        file.write_text(json.dumps(listed or listing()), encoding="utf-8")
        options = {"sensitive": False, "rows_per_second": 1, "machine": "box", "tuning_cost": 1200, **options}
        return should_i_tune(rows_per_month, 500, 100, prices=file, today=TODAY, **options)

    return ask


def test_sums_done_by_hand(ask):
    """An API: 500 * 2 + 100 * 10 = 2,000 yuan a million rows. One's own: 3.6 yuan / 3,600 rows, and 1,200 / 12 a month."""
    table = ask()
    own = "your own model on box"
    assert list(table.index) == ["cheap", own, "dear"]
    assert table["CNY a month"].to_dict() == pytest.approx({"cheap": 40, own: 120, "dear": 400})
    assert table["CNY per 1,000 rows"].to_dict() == pytest.approx({"cheap": 2, own: 1, "dear": 20})
    assert table["hours a month"][own] == pytest.approx(20_000 / 3600) and table["hours a month"].count() == 1
    assert table["dearer from"]["cheap"] == pytest.approx(100_000)
    assert table["dearer from"]["dear"] == pytest.approx(100 / 0.019)
    dollars = ask(currency="USD", tuning_cost=0)["USD a month"]
    assert dollars.to_dict() == pytest.approx({own: 4, "cheap": 8, "dear": 80})


def test_below_the_break_even_it_says_do_not_tune(ask):
    verdict = ask().attrs["verdict"]
    assert verdict.startswith("do not tune: cheap costs you 40 yuan a month;")
    assert verdict.endswith("your own model on box costs 120 yuan a month and is cheaper above 100,000 rows a month")
    assert ask(99_000).attrs["verdict"].startswith("do not tune") and ask(101_000).attrs["verdict"].startswith("tune")


def test_above_the_break_even_it_says_tune(ask):
    assert ask(1_000_000).attrs["verdict"] == (
        "tune: above 100,000 rows a month your own model on box is cheaper; it costs 1,100 yuan a month, cheap costs you "
        "2,000 yuan a month"
    )


def test_a_slow_machine_never_pays(ask):
    table = ask(10_000_000, rows_per_second=0.5)
    assert table["dearer from"].isna()["cheap"] and table.attrs["verdict"].endswith("and is dearer at any volume")
    assert table["note"]["your own model on box"] == "needs 8 machines"  # 5,556 hours of 730 each


def test_sensitive_text_stays_however_cheap_an_api_is(ask):
    verdict = ask(sensitive=True).attrs["verdict"]
    assert verdict.startswith("tune: the text is sensitive") and "about 120 yuan a month" in verdict


def test_a_task_of_many_steps_is_not_for_a_small_model(ask):
    verdict = ask(1_000_000, reasoning=True).attrs["verdict"]
    assert verdict.startswith("do not tune: a small model does not reason in steps") and "2,000 yuan" in verdict
    both = ask(reasoning=True, sensitive=True).attrs["verdict"]
    assert both.startswith("do not tune") and "your own machine" in both and "cheap" not in both


@pytest.mark.parametrize(("days", "note"), [(90, ""), (91, "price older than 90 days")])
def test_prices_are_marked_after_ninety_days(ask, days, note):
    listed = listing()
    listed["apis"][0]["read"] = (TODAY - timedelta(days)).isoformat()
    table = ask(listed=listed)
    assert table["note"]["cheap"] == note and table["note"]["dear"] == ""
    assert ("(price older than 90 days)" in table.attrs["verdict"]) == bool(note)


def test_an_old_exchange_rate_marks_what_it_converted(ask):
    listed = listing()
    listed["yuan_per_dollar"]["read"] = "2026-01-01"
    notes = ask(listed=listed)["note"]
    assert (
        notes["dear"] == "exchange rate older than 90 days" and notes["cheap"] == notes["your own model on box"] == ""
    )


@pytest.mark.parametrize("section", _FIELDS)
def test_a_missing_field_is_named_with_its_entry(ask, section):
    for field in _FIELDS[section]:
        listed = listing()
        entry = listed[section] if section == "yuan_per_dollar" else listed[section][-1]
        del entry[field]
        number = 2 if section == "apis" else 1
        with pytest.raises(ValueError, match=rf"prices.json: {section} entry {number} .*'{field}' is missing"):
            ask(listed=listed)


@pytest.mark.parametrize(
    ("field", "value"),
    [("read", "last week"), ("currency", "EUR"), ("input_per_million", "2"), ("output_per_million", -1)],
)
def test_a_value_of_the_wrong_kind_is_shown(ask, field, value):
    listed = listing()
    listed["apis"][0][field] = value
    with pytest.raises(ValueError, match=rf"apis entry 1 \('cheap'\): '{field}' is {value!r}"):
        ask(listed=listed)


def test_files_that_hold_no_prices(ask, tmp_path):
    with pytest.raises(ValueError, match="has no 'machines'"):
        ask(listed={**listing(), "machines": []})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        should_i_tune(1, 1, 1, sensitive=False, rows_per_second=1, prices=tmp_path / "broken.json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows_per_month": -5},
        {"rows_per_month": float("nan")},
        {"rows_per_second": 0},
        {"tuning_cost": -1},
        {"machine": "abacus"},
        {"currency": "EUR"},
    ],
)
def test_what_cannot_be_is_refused_by_name(ask, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        ask(**wrong)


def test_the_plot_has_a_line_for_each_way_and_a_dot_for_each_break_even(ask):
    listed = listing()
    listed["apis"][0]["read"] = "2026-01-01"
    table = ask(listed=listed)
    axes = plot_break_even(table)
    lines = {line.get_label().partition(":")[0]: line for line in axes.get_legend_handles_labels()[0]}
    assert lines.keys() == set(table.index)
    assert lines["cheap"].get_linestyle() == "--" and lines["dear"].get_linestyle() == "-"
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    found = sorted((dot.get_xdata()[0], dot.get_ydata()[0]) for dot in dots)
    assert found == [pytest.approx((100 / 0.019, 100 / 0.95)), pytest.approx((100_000, 200))]
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_ylabel() == "yuan a month"
    for line in lines.values():
        assert (line.get_ydata() > 0).all()
    matplotlib.pyplot.close("all")


def test_each_price_has_its_source_and_day(root):
    listed = json.loads((root / "data/prices.json").read_text(encoding="utf-8"))
    entries = [*listed["apis"], *listed["machines"], listed["yuan_per_dollar"]]
    assert len(listed["apis"]) >= 5 and len({entry["model"] for entry in listed["apis"]}) == len(listed["apis"])
    for entry in entries:
        assert entry["source"].startswith("https://") and entry["note"]
        assert date(2026, 1, 1) < date.fromisoformat(entry["read"]) <= date.today()
    for section, fields in _FIELDS.items():
        for entry in [listed[section]] if section == "yuan_per_dollar" else listed[section]:
            assert entry.keys() == set(fields)
    for entry in listed["apis"]:
        assert (
            entry["currency"] in ("CNY", "USD") and 0 < entry["input_per_million"] < entry["output_per_million"] < 100
        )
    table = should_i_tune(1000, 150, 89, sensitive=False, rows_per_second=1, prices=root / "data/prices.json")
    assert len(table) == len(listed["apis"]) + 1
