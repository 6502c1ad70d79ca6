"""What a reader looks at: the loss mask in colour, answers side by side, memory, plots."""

import html
from itertools import groupby

from pockettune.evaluation import Result, intervals, peak_memory

_GREY, _BLUE, _GREEN, _ORANGE = "#9aa0a6", "#1a73e8", "#188038", "#f9ab00"
_COLOURS = {"base": _GREY, "tuned": _BLUE, "base, held": "#5f6368", "tuned, held": _GREEN}


def show_example(trainer, index: int = 0) -> None:
    """Show one training row as the model meets it: grey is read, green on pale green is learned."""
    from IPython.display import HTML, display

    row, tokenizer, spans = trainer.train_dataset[index], trainer.processing_class, []
    for learned, pairs in groupby(zip(row["input_ids"], row["labels"], strict=True), lambda pair: pair[1] != -100):
        style = f"color:{_GREEN};background:#e6f4ea" if learned else f"color:{_GREY}"
        spans.append(f'<span style="{style}">{html.escape(tokenizer.decode([token for token, _ in pairs]))}</span>')
    display(HTML(f'<pre style="white-space:pre-wrap">{"".join(spans)}</pre>'))


def show_answers(
    before: list[Result], after: list[Result], describe, n: int = 5, heads: tuple = ("row", "before", "after")
) -> None:
    """Show n answers before and after side by side, with the scores each missed; `describe(row)` says what was asked."""
    from IPython.display import HTML, display

    def cell(text, result=None):
        missed = [k for k, v in result["scores"].items() if (v < 1) != (k == "capped")] if result else []
        note = f'<br><small style="color:#d93025">{", ".join(missed)}</small>' if missed else ""
        return f'<td style="text-align:left;vertical-align:top;width:33%">{html.escape(text[:400])}{note}</td>'

    body = "".join(
        f"<tr>{cell(describe(a['row']))}{cell(a['completion'], a)}{cell(b['completion'], b)}</tr>"
        for a, b in list(zip(before, after, strict=True))[:n]
    )
    head = "".join(f'<th style="text-align:left">{name}</th>' for name in heads)
    display(HTML(f'<table style="width:100%"><tr>{head}</tr>{body}</table>'))


def show_memory() -> None:
    """Print the peak memory so far, in GB."""
    print(f"peak memory {peak_memory():.2f} GB")


def plot_loss(trainer):
    """Plot the training loss as it was logged; returns the matplotlib Axes."""
    import matplotlib.pyplot as plt

    logs = [log for log in trainer.state.log_history if "loss" in log]
    _, axes = plt.subplots(figsize=(7, 3))
    axes.plot([log["step"] for log in logs], [log["loss"] for log in logs], color=_BLUE)
    axes.set(xlabel="step", ylabel="loss on the answer", ylim=(0, None), title="Training loss")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_scores(before: list[Result], after: list[Result], **others: list[Result]):
    """Plot mean scores with 95 % bootstrap intervals, base against tuned; returns the matplotlib Axes."""
    import matplotlib.pyplot as plt

    series = {"base": before, "tuned": after, **others}
    names = list(before[0]["scores"])
    _, axes = plt.subplots(figsize=(max(7, len(names)), 3.2))
    width = 0.8 / len(series)
    for i, (label, results) in enumerate(series.items()):
        bounds = [intervals([r["scores"][name] for r in results]) for name in names]
        means = [100 * mean for mean, _, _ in bounds]
        errors = [[100 * max(0, m - low) for m, low, _ in bounds], [100 * max(0, high - m) for m, _, high in bounds]]
        places = [j + (i - (len(series) - 1) / 2) * width for j in range(len(names))]
        colour = _COLOURS.get(label, _ORANGE)
        axes.bar(places, means, width * 0.92, yerr=errors, capsize=2, color=colour, label=label)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 6 else 0)
    axes.set(ylim=(0, 105), ylabel="%", title=f"Held-out rows, n = {len(after)}, 95 % intervals")
    axes.legend(
        frameon=False, ncols=len(series), loc="upper center", bbox_to_anchor=(0.5, -0.3 if len(names) > 6 else -0.12)
    )
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_by(table, title: str):
    """Plot a table of `compare_by`, a row of dots for each value; returns the matplotlib Axes."""
    import matplotlib.pyplot as plt

    labels = [label for label in table.columns if label != "n"]
    table = table.sort_values(labels[-1], ascending=False)
    _, axes = plt.subplots(figsize=(7, 0.26 * len(table) + 1))
    places = range(len(table))
    for label in labels:
        axes.plot(table[label], places, "o", color=_COLOURS.get(label, _ORANGE), label=label, alpha=0.85)
    axes.set_yticks(places, [f"{value} ({n})" for value, n in table["n"].items()])
    axes.set(xlim=(-3, 103), xlabel="%, number of rows in brackets", title=title)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(
        frameon=False, ncols=len(labels), loc="upper center", bbox_to_anchor=(0.5, -0.9 / (0.26 * len(table) + 1))
    )
    axes.spines[["top", "right"]].set_visible(False)
    return axes
