"""Precision, by model type and compute capability."""

import pytest

from pockettune import environment
from pockettune.environment import precision

TABLE = [
    # model type, capability, native bf16 on the CPU, fp16, bf16
    ("gemma3_text", (7, 5), False, False, False),
    ("gemma3", (7, 0), False, False, False),
    ("qwen3", (7, 5), False, True, False),
    ("gemma3_text", (8, 0), False, False, True),
    ("qwen3", (8, 6), False, False, True),
    ("qwen3", (9, 0), False, False, True),
    ("gemma3_text", (12, 0), False, False, True),
    ("gemma3_text", None, True, False, True),
    ("qwen3", None, False, False, False),
]


@pytest.mark.parametrize(("model_type", "capability", "cpu_bf16", "fp16", "bf16"), TABLE)
def test_precision(model_type, capability, cpu_bf16, fp16, bf16):
    found = precision(model_type, capability, cpu_bf16)
    assert found[:2] == (fp16, bf16)
    assert found.reason


def test_a_mocked_t4_trains_gemma_in_float32_whatever_torch_says_of_bf16(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
    assert environment.device_precision("gemma3_text")[:2] == (False, False)
    assert environment.device_precision("qwen3")[:2] == (True, False)


def test_a_cpu_trains_in_the_precision_it_multiplies_faster(monkeypatch):
    import timeit

    import torch

    seconds = iter([2.0, 1.0] * 6 + [1.0, 0.9] * 6)  # float32 and bfloat16 on one CPU, then on another
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(timeit, "timeit", lambda *a, **k: next(seconds))
    found = []
    for _ in range(2):
        environment.bf16_pays.cache_clear()
        found.append(environment.device_precision("qwen3").bf16)
    environment.bf16_pays.cache_clear()
    assert found == [True, False]
