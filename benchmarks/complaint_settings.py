"""Which settings tune the extraction best? Trains each on the same rows and prints held-out scores, free and held.

python benchmarks/complaint_settings.py NAME [NAME ...]    (without names: all; one line of JSON each)
"""

import json
import sys
import time
from pathlib import Path

import pockettune as pt
from pockettune.environment import PHASES
from pockettune.tasks import complaints

SHARED = {"warmup_steps": 10, "weight_decay": 0.001, "lr_scheduler_type": "linear", "disable_tqdm": True}
SHARED |= {"train_sampling_strategy": "group_by_length"}
SETTINGS = {  # LoRA rank (0: all weights), alpha, then the trainer's
    "r64 5e-4 x2": (64, 64, {"learning_rate": 5e-4, "num_train_epochs": 2, "per_device_train_batch_size": 32}),
    "r64 5e-4 x3": (64, 64, {"learning_rate": 5e-4, "num_train_epochs": 3, "per_device_train_batch_size": 32}),
    "r128 5e-4 x3": (128, 128, {"learning_rate": 5e-4, "num_train_epochs": 3, "per_device_train_batch_size": 32}),
    "full 1e-4 x3": (0, 0, {"learning_rate": 1e-4, "num_train_epochs": 3, "per_device_train_batch_size": 16}),
    "r8 a32 5e-4 x2": (8, 32, {"learning_rate": 5e-4, "num_train_epochs": 2, "per_device_train_batch_size": 16}),
}


def means(results) -> dict[str, float]:
    return {name: round(sum(r["scores"][name] for r in results) / len(results), 3) for name in results[0]["scores"]}


def main(names):
    train, held_out = (pt.load_rows(f"data/complaints{part}.jsonl") for part in ("", "_eval"))
    for name in names or SETTINGS:
        rank, alpha, settings = SETTINGS[name]
        model, tokenizer = pt.load_model(max_seq_length=1280, lora_r=rank, lora_alpha=alpha)
        examples = pt.to_dataset(train, complaints.to_example)
        trainer = pt.make_trainer(model, tokenizer, examples, output_dir="outputs/settings", **SHARED, **settings)
        trainer.train()
        steps = [round(PHASES.pop(phase), 1) for phase in ("first step", "further steps")]
        for label, grammar in (("free", None), ("held", complaints.grammar)):
            start = time.time()
            results = pt.evaluate(
                trainer.model, tokenizer, held_out, complaints, grammar=grammar, max_new_tokens=256, batch_size=128
            )
            line = {"name": name, "answers": label, **means(results), "steps": trainer.state.global_step}
            line |= {"seconds": [*steps, round(time.time() - start, 1)], "loss": trainer.state.log_history[-2]["loss"]}
            print(json.dumps(line), flush=True)
        by = {r["row"]["by"] for r in results}
        print({b: means([r for r in results if r["row"]["by"] == b])["all_exact"] for b in by}, flush=True)
        with Path("outputs/settings/missed.jsonl").open("a", encoding="utf-8") as file:
            for result in results:
                if not result["scores"]["all_exact"]:
                    file.write(json.dumps({"setting": name, **result}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
