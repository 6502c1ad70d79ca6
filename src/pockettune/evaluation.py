"""Scores before and after: answers to held-out rows, bootstrap intervals, the run card."""

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TypedDict

from pockettune.environment import PHASES, Environment, phase
from pockettune.generation import complete
from pockettune.rows import load_rows, write_text


class Result(TypedDict):
    """One answer to one row and its scores."""

    row: dict
    completion: str
    scores: dict[str, float]


def evaluate(
    model, tokenizer, rows: list[dict], task: ModuleType, *, grammar=None, known: tuple[str, ...] = (), **generation
) -> list[Result]:
    """Answer rows with a model and score the answers.

    `grammar(row)` gives the grammar an answer is held to, `known` are training answers, `generation` goes to `generate`.
    """
    with phase("evaluate"):
        prompts = [task.to_example(row)["prompt"] for row in rows]
        grammars = grammar and [grammar(row) for row in rows]
        answers = complete(model, tokenizer, prompts, grammar=grammars, **generation)
        return score_completions(*zip(*answers, strict=True), rows, task, known=known)


def score_completions(
    completions, capped, rows: list[dict], task: ModuleType, *, known: tuple[str, ...] = ()
) -> list[Result]:
    """Score answers from anywhere, one for each row; `capped` says which were cut off by the token limit."""
    return [
        Result(row=row, completion=text, scores=task.score(text, row, capped=cut, known=known))
        for text, cut, row in zip(completions, capped, rows, strict=True)
    ]


def intervals(values, resamples: int = 2000) -> tuple[float, float, float]:
    """Return mean and 95 % bootstrap interval (percentiles of resampled means).

    Where every value is the same the interval has no width, but the truth may differ: of n answers all right, up
    to 3 in n may still be wrong (the rule of three).
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    means = np.random.default_rng(3407).choice(values, (resamples, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def compare(before: list[Result], after: list[Result], **others: list[Result]):
    """Return a DataFrame of scores in percent, with 95 % intervals: base, tuned, others by name, and the gain."""
    import pandas as pd

    def cell(values):
        mean, low, high = (100 * v for v in intervals(values))
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]"

    names = list(before[0]["scores"])
    table = {
        label: {name: cell([r["scores"][name] for r in results]) for name in names}
        for label, results in {"base": before, "tuned": after, **others}.items()
    }
    pairs = list(zip(before, after, strict=True))
    table["gain"] = {name: cell([b["scores"][name] - a["scores"][name] for a, b in pairs]) for name in names}
    frame = pd.DataFrame(table)
    frame.columns.name = f"%, n = {len(after)}"
    return frame


def compare_by(key: str, score: str, **results: list[Result]):
    """Return a DataFrame of one score's mean in percent for each value of a row's `key`, with n, a column for each results."""
    import pandas as pd

    table: dict[str, dict] = {"n": {}}
    for label, rs in results.items():
        for value in sorted({r["row"][key] for r in rs}):
            scores = [r["scores"][score] for r in rs if r["row"][key] == value]
            table["n"][value] = len(scores)
            table.setdefault(label, {})[value] = round(100 * sum(scores) / len(scores), 1)
    return pd.DataFrame(table)


def peak_memory() -> float:
    """Peak memory of this process in GB: the GPU's where there is one, else the resident size."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def write_run_card(
    path: str | Path,
    *,
    environment: Environment,
    trainer,
    model_name: str,
    train_rows: list[dict],
    results: dict[str, list[Result]],
    by: str | None = None,
) -> Path:
    """Write what ran and what came of it as JSON, whole or not at all; no rows, texts, paths or keys are in it.

    With `by`, a key of the rows, the mean scores are also given for each of its values.
    """
    args, model = trainer.args, trainer.model
    held_out = next(iter(results.values()))
    lora = getattr(model, "peft_config", {}).get("default")
    settings = ("learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "per_device_train_batch_size")
    settings += ("gradient_accumulation_steps", "num_train_epochs", "max_steps", "seed", "optim", "fp16", "bf16")
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps the real one
    card = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "model": "a local folder" if Path(model_name).is_dir() else model_name,
        "model_type": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "lora": lora and {"r": lora.r, "alpha": lora.lora_alpha, "dropout": lora.lora_dropout},
        "data": {
            "train": {"rows": len(train_rows), "sha256": _digest(train_rows)},
            "eval": {"rows": len(held_out), "sha256": _digest([r["row"] for r in held_out])},
        },
        "device": environment.device,
        "versions": environment.versions,
        "precision": environment.precision._asdict(),
        "optimizer": f"{type(optimizer).__module__.split('.')[0]} {type(optimizer).__name__}",
        "settings": {name: getattr(args, name) for name in settings},
        "warmup_steps": args.get_warmup_steps(trainer.state.max_steps),
        "steps": trainer.state.global_step,
        "final_loss": next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), None),
        "seconds": {name: round(seconds, 1) for name, seconds in PHASES.items()},
        "peak_memory_gb": round(peak_memory(), 2),
        "scores": {label: summarize(rs) for label, rs in results.items()},
    }
    if by:
        import pandas as pd

        values = [str(r["row"][by]) for r in held_out]
        means = {
            label: pd.DataFrame([r["scores"] for r in rs]).groupby(values).mean().round(4).to_dict("index")
            for label, rs in results.items()
        }
        card[f"means by {by}"] = {
            value: {"n": n} | {label: found[value] for label, found in means.items()}
            for value, n in sorted(Counter(values).items())
        }
    return write_text(path, json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def summarize(results: list[Result]) -> dict[str, dict[str, float]]:
    """Mean and interval of each score."""
    parts = ("mean", "low", "high")
    found = {name: intervals([r["scores"][name] for r in results]) for name in results[0]["scores"]}
    return {name: dict(zip(parts, (round(v, 4) for v in values), strict=True)) for name, values in found.items()}


def _digest(rows: list[dict]) -> str:
    return hashlib.sha256("\n".join(json.dumps(row, sort_keys=True) for row in rows).encode()).hexdigest()


def show_report(folder: str | Path, answers: int = 3) -> None:
    """Print what a finished notebook left in its output folder: answers before and after, scores, files."""
    folder = Path(folder)
    card = json.loads((folder / "run_card.json").read_text(encoding="utf-8"))
    for row in load_rows(folder / "answers.jsonl", answers):
        print(f"\n{row['prompt']}\n  base:  {row['base'].strip()[:200]!r}\n  tuned: {row['tuned']}")
    print(
        f"\n{card['model']} on {card['device']}, {card['steps']} steps, n = {card['data']['eval']['rows']}, 95 % intervals"
    )
    labels = list(card["scores"])
    print(f"  {'':12}" + "".join(f"{label:>22}" for label in labels))
    for name in card["scores"]["tuned"]:
        cells = [card["scores"][label][name] for label in labels]
        shown = (f"{100 * c['mean']:.1f} % [{100 * c['low']:.0f}, {100 * c['high']:.0f}]" for c in cells)
        print(f"  {name:12}" + "".join(f"{cell:>22}" for cell in shown))
    print("\nnotebook:", *folder.glob("*.ipynb"), "\nrun card:", folder / "run_card.json")
