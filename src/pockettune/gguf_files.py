"""GGUF files, which PocketPal, Ollama and llama.cpp open: a whole model or its adapters, and how to ask them."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pockettune import embedded
from pockettune.generation import render, turn_end, unthinking_template
from pockettune.models import locate
from pockettune.rows import write_text

_LICENCES = {"gemma3_text": ("gemma", embedded.TERMS), "qwen3": ("apache-2.0", None)}
# Matrices of each kind of file; K-quants want rows of a multiple of 256, the second is what llama.cpp takes elsewhere.
_QUANTIZATIONS = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_k_m": "Q4_K"}
_WIDER = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


def export_gguf(
    path: str | Path,
    out: str | Path,
    quantization: str = "q8_0",
    *,
    run_card: str | Path | None = None,
    example: list[dict] | None = None,
) -> Path:
    """Write a merged folder of Gemma 3 or Qwen3 as a GGUF file, and beside it how to ask it, for people and for Ollama.

    `quantization` is f16, bf16, q8_0 or q4_k_m. Q8_0 is the default: Gemma 3 270M's rows of 640 are no multiple of
    256, so q4_k_m falls back to wider types and saves 13 % of the size. Template, stop tokens, licence and, from the run card, where
    the model comes from are in the file's metadata; `example` is a prompt (messages) to be shown.
    Raises ValueError for another kind of model or quantization.
    """
    from gguf import get_tensor_name_map
    from libgguf import quantize_rows
    from transformers import AutoTokenizer

    path, out = Path(path), Path(out)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    kind, arch = config["model_type"], _architecture(config["model_type"])
    if quantization not in _QUANTIZATIONS:
        raise ValueError(f"no quantization {quantization!r}: choose one of {', '.join(_QUANTIZATIONS)}")
    tokenizer = AutoTokenizer.from_pretrained(path)
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    with _gguf_file(out, arch) as writer:
        _write_geometry(writer, config)
        _write_provenance(writer, out.stem, kind, quantization, run_card)
        _write_vocabulary(writer, path, config, tokenizer)
        for name, tensor in _tensors(path):
            target = names.get_name(name, try_suffixes=(".weight",))
            if target is None:
                raise ValueError(f"llama.cpp knows no {name} in a {kind} model")
            if target == "output.weight" and config.get("tie_word_embeddings"):
                continue
            dtype = _matrix_type(target, tensor.shape, quantization, config["num_hidden_layers"])
            # Gemma multiplies by 1 + w, llama.cpp by w.
            rows = tensor + 1 if kind == "gemma3_text" and target.endswith("norm.weight") else tensor
            writer.add_tensor(target, quantize_rows(rows, dtype), raw_dtype=dtype)
    example = example or [{"role": "user", "content": "YOUR TEXT"}]
    write_text(out.with_suffix(".md"), _how_to_ask(out, render(tokenizer, example), example))
    write_text(out.with_suffix(".Modelfile"), _modelfile(out.name, kind, example))
    return out


def export_gguf_adapter(path: str | Path, out: str | Path) -> Path:
    """Write saved adapters as a GGUF adapter for llama.cpp's --lora, over a GGUF file of their base model.

    Raises ValueError for adapters that are more than plain LoRA of one rank.
    """
    import numpy as np
    from gguf import get_tensor_name_map
    from transformers import AutoConfig

    path, out = Path(path), Path(out)
    lora = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    if odd := [
        k for k in ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern") if lora.get(k)
    ]:
        raise ValueError(f"llama.cpp's adapters are plain LoRA of one rank; these have {', '.join(odd)}")
    config = AutoConfig.from_pretrained(locate(lora["base_model_name_or_path"]))
    names = get_tensor_name_map(_architecture(config.model_type), config.num_hidden_layers)
    with _gguf_file(out, _architecture(config.model_type)) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(lora["lora_alpha"]))
        writer.add_license(_LICENCES[config.model_type][0])
        for name, tensor in _tensors(path, "adapter_model.safetensors"):
            module, side = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name).groups()
            half = np.ascontiguousarray(tensor, np.float16)  # finer than the base's own rounding
            writer.add_tensor(f"{names.get_name(module)}.weight.lora_{side.lower()}", half)
    return out


def _architecture(kind: str):
    from gguf import MODEL_ARCH

    if kind not in _LICENCES:
        raise ValueError(f"{kind} models cannot be written as GGUF here: {', '.join(_LICENCES)} can")
    return MODEL_ARCH.GEMMA3 if kind == "gemma3_text" else MODEL_ARCH.QWEN3


@contextlib.contextmanager
def _gguf_file(out: Path, arch) -> Iterator:
    """A GGUFWriter whose file appears once all is in it."""
    from gguf import MODEL_ARCH_NAMES, GGUFWriter

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    writer = GGUFWriter(part, MODEL_ARCH_NAMES[arch])
    try:
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _tensors(folder: Path, name: str = "model.safetensors") -> Iterator[tuple]:
    """The tensors of a folder as float32 arrays, one at a time."""
    from safetensors import safe_open

    index = folder / f"{name}.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [name]
    for file in files:
        with safe_open(folder / file, "pt") as tensors:  # numpy has no bfloat16
            for key in tensors.keys():  # noqa: SIM118  (no dict)
                yield key, tensors.get_tensor(key).float().numpy()


def _write_geometry(writer, config: dict) -> None:
    rope = config.get("rope_parameters") or {}  # since transformers 5; the keys beside are those before
    full = rope.get("full_attention", rope)
    if full.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise ValueError("the model scales its rotary embedding, which is not written here")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(full.get("rope_theta") or config["rope_theta"]))
    if config["model_type"] == "gemma3_text":
        local = rope.get("sliding_attention", {}).get("rope_theta") or config.get("rope_local_base_freq", 10000.0)
        writer.add_sliding_window(config["sliding_window"])
        writer.add_rope_freq_base_swa(float(local))


def _write_provenance(writer, name: str, kind: str, quantization: str, run_card: str | Path | None) -> None:
    import gguf

    licence, link = _LICENCES[kind]
    writer.add_type("model")
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantization.upper()}"])
    writer.add_license(licence)
    if link:
        writer.add_license_link(link)
    if run_card:
        card = json.loads(Path(run_card).read_text(encoding="utf-8"))
        card.pop("exports", None)  # these come later, and change
        writer.add_string("pockettune.base_model", card["model"])
        writer.add_string("pockettune.train_sha256", card["data"]["train"]["sha256"])
        writer.add_string(
            "pockettune.run_card_sha256", hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
        )


def _write_vocabulary(writer, folder: Path, config: dict, tokenizer) -> None:
    """Tokens as llama.cpp wants them: Gemma's as a SentencePiece model by merge order, Qwen's as a BPE."""
    from gguf import TokenType

    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    gemma = config["model_type"] == "gemma3_text"
    added = {entry["id"]: entry for entry in whole["added_tokens"]}
    pieces = {i: piece for piece, i in whole["model"]["vocab"].items()}
    pieces |= {i: entry["content"] for i, entry in added.items()}
    tokens, types, scores = [], [], []
    for i in range(config["vocab_size"]):  # the tokenizer may have more, which the model cannot write
        piece = pieces.get(i, f"[PAD{i}]")
        score = -1000.0
        if i not in pieces:
            kind = TokenType.UNUSED
        elif i in added:
            kind = TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED
            if gemma and kind == TokenType.USER_DEFINED:
                piece = piece.replace("▁", " ")
        elif gemma and re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            kind, score = TokenType.BYTE, 0.0
        else:
            kind, score = TokenType.NORMAL, -float(i)  # an earlier id is an earlier merge
        tokens.append(piece)
        types.append(kind)
        scores.append(score)
    writer.add_tokenizer_model("llama" if gemma else "gpt2")
    writer.add_tokenizer_pre("default" if gemma else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if gemma:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(False)
    else:
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]])
    writer.add_add_bos_token(gemma)
    writer.add_eos_token_id(tokenizer.eos_token_id if gemma else turn_end(tokenizer))
    writer.add_eot_token_id(turn_end(tokenizer))
    writer.add_bos_token_id(tokenizer.bos_token_id if gemma else tokenizer.pad_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(unthinking_template(tokenizer))


def _matrix_type(name: str, shape: tuple, quantization: str, layers: int):
    """The type of a tensor; llama.cpp's recipe for q4_k_m, with its wider types where rows are no multiple of 256."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    kind = _QUANTIZATIONS[quantization]
    if quantization == "q4_k_m":
        layer = int(found[1]) if (found := re.match(r"blk\.(\d+)\.", name)) else -1
        rest = layer - layers // 8
        sensitive = layer >= 0 and (rest < 0 or layer >= 7 * layers // 8 or rest % 3 == 2)
        if layer < 0 or (sensitive and ("attn_v" in name or "ffn_down" in name)):
            kind = "Q6_K"
    if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]:
        kind = _WIDER.get(kind, "F16")
    return GGMLQuantizationType[kind]


def _modelfile(name: str, kind: str, example: list[dict]) -> str:
    """What `ollama create NAME -f FILE` reads."""
    if kind == "gemma3_text":
        turns = "<start_of_turn>user\n{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}<end_of_turn>\n"
        turns += "<start_of_turn>model\n"
        stop = "<end_of_turn>"
    else:
        turns = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
        turns += "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        stop = "<|im_end|>"
    lines = [f"FROM ./{name}", f'TEMPLATE """{turns}"""', f'PARAMETER stop "{stop}"', "PARAMETER temperature 0"]
    lines += [f'SYSTEM """{m["content"]}"""' for m in example if m["role"] == "system"]
    return "\n".join(lines) + "\n"


def _how_to_ask(out: Path, prompt: str, example: list[dict]) -> str:
    """What a person needs to ask the file as it was trained."""
    blocks = [f"{m['role'].capitalize()} message:\n\n```text\n{m['content']}\n```\n" for m in example]
    return f"""# How to ask {out.name}

- On a phone (PocketPal, or another app that opens GGUF files): copy the file to it, add it as a local model, set the
  temperature to 0 and the system prompt to the system message below; then send texts like the user message.
- On a laptop: `ollama create mine -f {out.stem}.Modelfile && ollama run mine`, or llama.cpp:
  `llama-cli -m {out.name} --temp 0 -sys SYSTEM -p USER`

{chr(10).join(blocks)}
The whole prompt, as the model was trained on it (programs add its first token by themselves):

```text
{prompt}
```
"""
