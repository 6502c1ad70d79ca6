"""Which settings tune the roast best? Trains each on the same rows and prints held-out scores and loss side by side.

python benchmarks/roast_settings.py NAME [NAME ...]    (without names: all; one line of JSON each)
"""

import json
import sys
import time

import pockettune as pt
from pockettune.environment import PHASES
from pockettune.tasks import roast

SHARED = {"per_device_train_batch_size": 8, "warmup_steps": 5, "weight_decay": 0.01, "lr_scheduler_type": "linear"}
PLAIN = 392  # the first training rows, the plainly worded ones
SETTINGS = {  # LoRA rank (0: all weights), alpha, then the trainer's
    "r64 5e-4 x3": (64, 64, {"learning_rate": 5e-4, "num_train_epochs": 3}),
    "plain, r64 5e-4 x4": (64, 64, {"learning_rate": 5e-4, "num_train_epochs": 4}),
    "full 5e-5 x3": (0, 0, {"learning_rate": 5e-5, "num_train_epochs": 3}),
    "r16 5e-4 x5": (16, 16, {"learning_rate": 5e-4, "num_train_epochs": 5}),
    "r128 2e-4 x5": (128, 128, {"learning_rate": 2e-4, "num_train_epochs": 5}),
    "full 1e-4 x5": (0, 0, {"learning_rate": 1e-4, "num_train_epochs": 5}),
    "article": (64, 64, {"learning_rate": 2e-5, "num_train_epochs": 5}),
}


def held_out_loss(model, tokenizer, examples) -> float:
    """Mean negative log likelihood of a token of the reference answers."""
    import torch

    from pockettune.training import tokenize

    total, count = 0.0, 0
    model.eval()
    for row in tokenize(examples, model, tokenizer):
        ids, labels = (torch.tensor([row[key]], device=model.device) for key in ("input_ids", "labels"))
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits[0], labels[0, 1:], ignore_index=-100, reduction="sum")
        total, count = total + loss.item(), count + int((labels != -100).sum())
    return total / count


def main(names):
    train, held_out = (pt.load_rows(f"data/strava_roasts{part}.jsonl") for part in ("", "_eval"))
    judged = pt.to_dataset(held_out, roast.to_example)
    known = tuple(roast.to_example(row)["completion"][0]["content"] for row in train)
    for name in names or SETTINGS:
        rank, alpha, settings = SETTINGS[name]
        model, tokenizer = pt.load_model(max_seq_length=512, lora_r=rank, lora_alpha=alpha)
        if name == (names or list(SETTINGS))[0]:
            print(json.dumps({"name": "base", "loss": round(held_out_loss(model, tokenizer, judged), 3)}), flush=True)
        examples = pt.to_dataset(train[: PLAIN if name.startswith("plain") else None], roast.to_example)
        trainer = pt.make_trainer(model, tokenizer, examples, output_dir="outputs/settings", **SHARED, **settings)
        trainer.args.disable_tqdm = True
        trainer.train()
        steps = [PHASES.pop(name) for name in ("first step", "further steps")]
        trained = time.time()
        results = pt.evaluate(
            trainer.model, tokenizer, held_out, roast, known=known, max_new_tokens=128, batch_size=128
        )
        means = {k: round(sum(r["scores"][k] for r in results) / len(results), 3) for k in results[0]["scores"]}
        loss = round(held_out_loss(trainer.model, tokenizer, judged), 3)
        line = {"name": name, "loss": loss, **means, "steps": trainer.state.global_step}
        line |= {
            "first_step_s": round(steps[0], 1),
            "further_steps_s": round(steps[1], 1),
            "evaluate_s": round(time.time() - trained),
        }
        line["train_loss"] = trainer.state.log_history[-2]["loss"]
        print(json.dumps(line), flush=True)
        for result in [r for r in results if not r["scores"]["faithful"]][:4]:
            print(
                "   ", result["completion"], roast.unsupported(result["completion"], result["row"]["input"]), flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])
