"""What does a grammar cost? The same prompts answered free and held, in one run; prints milliseconds a step and the ratio.

python benchmarks/held_speed.py [BATCH ...]
"""

import sys
import time

import pockettune as pt
from pockettune.tasks import complaints

STEPS = 48


def main(batches) -> None:
    rows = pt.load_rows("data/complaints_eval.jsonl", max(batches))
    model, tokenizer = pt.load_model(max_seq_length=1280, lora_r=8)
    prompts = [complaints.to_example(row)["prompt"] for row in rows]
    start = time.perf_counter()
    grammars = [complaints.grammar(row) for row in rows]
    print(f"building {len(rows)} grammars: {1000 * (time.perf_counter() - start) / len(rows):.1f} ms each")
    pt.generate(model, tokenizer, prompts[:2], grammar=grammars[:2], max_new_tokens=4)  # both warm
    for batch in batches:
        milliseconds = {}
        for label, held in (("free", None), ("held", grammars[:batch])):
            start = time.perf_counter()
            answers = pt.generate(
                model, tokenizer, prompts[:batch], grammar=held, max_new_tokens=STEPS, batch_size=batch
            )
            seconds = time.perf_counter() - start
            steps = max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers)
            milliseconds[label] = 1000 * seconds / min(steps + 1, STEPS)
        free, held = milliseconds["free"], milliseconds["held"]
        print(f"batch {batch:3}: free {free:6.1f} ms a step, held {held:6.1f} ms, ratio {held / free:.2f}", flush=True)


if __name__ == "__main__":
    main([int(batch) for batch in sys.argv[1:]] or [1, 4, 16, 64])
