"""Whether to tune at all: what a month of rows costs by an API and by a model of one's own, from dated prices."""

import json
from datetime import date
from math import ceil, inf
from pathlib import Path

STALE, MONTH = 90, 730  # days after which a price is marked as old, hours in a month
_WORDS = {"CNY": "yuan", "USD": "dollars"}
_CHECKS = {  # of a field's value: False or an error means that it is none
    **dict.fromkeys(("input_per_million", "output_per_million", "per_hour"), lambda value: value >= 0),
    "rate": lambda value: value > 0,
    "currency": _WORDS.__getitem__,
    "read": date.fromisoformat,
}
_FIELDS = {
    "apis": ("model", "provider", "input_per_million", "output_per_million", "currency", "source", "read", "note"),
    "machines": ("machine", "provider", "per_hour", "currency", "source", "read", "note"),
    "yuan_per_dollar": ("rate", "source", "read", "note"),
}


def should_i_tune(
    rows_per_month: float,
    tokens_in: float,
    tokens_out: float,
    *,
    sensitive: bool,
    reasoning: bool = False,
    rows_per_second: float,
    machine: str = "2 CPU cores",
    tuning_cost: float = 2000,
    currency: str = "CNY",
    prices: str | Path = "data/prices.json",
    today: date | None = None,
):
    """Return a DataFrame of what each way costs a month, cheapest first; its `attrs["verdict"]` is a sentence.

    `tokens_in` and `tokens_out` are an API's for one row, without what it thinks; `rows_per_second` is what your model
    was measured at on that `machine`, taken as rented by the hour and only while it works. `tuning_cost`, in `currency`,
    is paid once for labels, checks and a GPU and spread over twelve months: the default is a guess, give your own.
    How well an API does the task is not in it. "dearer from" is the rows a month from which an API costs more than your
    model, NaN if it never does. Raises ValueError for a number that cannot be, a machine or currency that is not
    listed, and for a file of prices with a field missing.
    """
    import pandas as pd

    numbers = {"rows_per_month": rows_per_month, "rows_per_second": rows_per_second}
    for name, value in {**numbers, "tokens_in": tokens_in, "tokens_out": tokens_out}.items():
        if not 0 < value < inf:
            raise ValueError(f"{name} is {value}, expected more than 0")
    if not 0 <= tuning_cost < inf:
        raise ValueError(f"tuning_cost is {tuning_cost}, expected at least 0")
    listed = _load(Path(prices))
    hosts, dollar = {entry["machine"]: entry for entry in listed["machines"]}, listed["yuan_per_dollar"]
    for kind, value, known in (("machine", machine, hosts), ("currency", currency, _WORDS)):
        if value not in known:
            raise ValueError(f"no {kind} {value!r}: there are {', '.join(known)}")
    monthly, thousand = f"{currency} a month", f"{currency} per 1,000 rows"

    def way(name: str, entry: dict, price: float, fixed: float = 0.0, hours: float | None = None) -> dict:
        reads = {"price": entry["read"]}
        if entry["currency"] != currency:
            price *= dollar["rate"] if currency == "CNY" else 1 / dollar["rate"]
            reads["exchange rate"] = dollar["read"]
        ages = {what: ((today or date.today()) - date.fromisoformat(read)).days for what, read in reads.items()}
        notes = [f"{what} older than {STALE} days" for what, age in ages.items() if age > STALE]
        notes += [f"needs {ceil(hours / MONTH)} machines"] if hours and hours > MONTH else []
        costs = {monthly: fixed + price * rows_per_month, thousand: 1000 * price, f"{currency} fixed": fixed}
        return {"way": name, **costs, "hours a month": hours, "price read": entry["read"], "note": ", ".join(notes)}

    price, hours = hosts[machine]["per_hour"] / rows_per_second / 3600, rows_per_month / rows_per_second / 3600
    ways = [way(f"your own model on {machine}", hosts[machine], price, tuning_cost / 12, hours)]
    for api in listed["apis"]:
        price = (tokens_in * api["input_per_million"] + tokens_out * api["output_per_million"]) / 1e6
        ways.append(way(api["model"], api, price))
    table = pd.DataFrame(ways).set_index("way")
    gap = table[thousand] - table[thousand].iloc[0]
    table.insert(3, "dearer from", 1000 * tuning_cost / 12 / gap.where(gap > 0))
    mine, best = table.iloc[0], table.iloc[table[monthly].iloc[1:].argmin() + 1]
    table = table.sort_values(monthly, kind="stable")
    verdict = _verdict(mine, best, monthly, _WORDS[currency], sensitive, reasoning)
    table.attrs = {"verdict": verdict, "currency": currency, "rows_per_month": rows_per_month}
    return table


def _verdict(mine, best, monthly: str, word: str, sensitive: bool, reasoning: bool) -> str:
    def cost(way) -> str:
        amount = f"{way[monthly]:,.{0 if way[monthly] >= 10 else 2}f} {word} a month"
        return f"{amount} ({way['note']})" if way["note"] else amount

    own, api = cost(mine), f"{best.name} costs you {cost(best)}"
    steps = "do not tune: a small model does not reason in steps"
    if reasoning and sensitive:
        return f"{steps}, and the text is sensitive: run a larger one on your own machine"
    if reasoning:
        return f"{steps}: use an API or a larger model; {api}, more if it thinks first"
    if sensitive:
        return f"tune: the text is sensitive, so it must stay on your machine; {mine.name} costs about {own}"
    above = f"above {best['dearer from']:,.0f} rows a month"
    if mine[monthly] < best[monthly]:
        return f"tune: {above} {mine.name} is cheaper; it costs {own}, {api}"
    turn = f"is cheaper {above}" if best["dearer from"] >= 0 else "is dearer at any volume"
    return f"do not tune: {api}; {mine.name} costs {own} and {turn}"


def plot_break_even(table):
    """Plot rows a month against cost a month, a line for each way of `should_i_tune`; returns the matplotlib Axes.

    Dots are where an API gets dearer than your model, dashed lines rest on old prices, the dotted line is your volume.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    currency, volume = table.attrs["currency"], table.attrs["rows_per_month"]
    rows = np.geomspace(100, max(1e7, 10 * volume, 2 * table["dearer from"].fillna(0).max()), 200)
    _, axes = plt.subplots(figsize=(7, 4))
    for place, (name, way) in enumerate(table.iterrows()):
        own, even, line = way["hours a month"] >= 0, way["dearer from"], "--" if "older" in way["note"] else "-"
        label = f"{name}: dearer from {even:,.0f} rows" if even >= 0 else name
        style = {"color": "#1a73e8", "linewidth": 3} if own else {"color": f"C{1 + place % 9}"}  # C0 is blue as well
        price = way[f"{currency} per 1,000 rows"] / 1000
        axes.plot(rows, way[f"{currency} fixed"] + price * rows, line, label=label, **style)
        if even > 0:
            axes.plot(even, price * even, "o", color=style["color"])
    axes.axvline(volume, color="#9aa0a6", linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="rows a month", ylabel=f"{_WORDS[currency]} a month")
    axes.set_title("An API, or a model of your own")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _load(path: Path) -> dict:
    listed = json.loads(path.read_text(encoding="utf-8"))
    for section, fields in _FIELDS.items():
        entries = listed.get(section)
        if not entries:
            raise ValueError(f"{path.name} has no {section!r}")
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
            if not isinstance(entry, dict):
                raise ValueError(f"{path.name}: {section} entry {number} is {entry!r}, expected an object")
            for field in fields:
                try:
                    good = _CHECKS.get(field, str)(entry[field]) is not False
                except (KeyError, TypeError, ValueError):
                    good = False
                if not good:
                    found = repr(entry[field]) if field in entry else "missing"
                    raise ValueError(
                        f"{path.name}: {section} entry {number} ({entry.get(fields[0])!r}): {field!r} is {found}"
                    )
    return listed
