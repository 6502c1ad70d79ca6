"""What this machine offers, in which precision it trains, and whether the installed libraries are the tested set."""

import atexit
import contextlib
import ctypes
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
import timeit
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

# What the notebooks stand on, as in requirements.txt and requirements-unsloth.txt (a test keeps them equal).
SUPPORTED = {
    "torch": ">=2.11,<2.14",
    "transformers": "==5.17.0",
    "trl": "==1.15.0",
    "peft": "==0.21.2",
    "accelerate": "==1.15.0",
    "datasets": "==4.8.5",
    "bitsandbytes": "==0.50.2",
    "unsloth": "==2026.10.9",
    "unsloth_zoo": "==2026.10.9",
}
TORCHAO = ">=0.16"  # or none at all; Colab has 0.10, and PEFT 0.21 stops at it
INSTALL = "pip install -r requirements.txt && pip install --no-deps -r requirements-unsloth.txt"


PHASES: dict[str, float] = {}  # seconds this process spent in each phase, for the run card


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Add the time spent inside to `PHASES`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        PHASES[name] = PHASES.get(name, 0.0) + time.perf_counter() - start


class Precision(NamedTuple):
    """Both flags for the trainer, and why."""

    fp16: bool
    bf16: bool
    reason: str


class Environment(NamedTuple):
    """What `preflight` found; `capability` is None on a CPU, memory is in GB (GPU memory where there is a GPU)."""

    device: str
    capability: tuple[int, int] | None
    memory: float
    precision: Precision
    versions: dict[str, str]


def precision(model_type: str, capability: tuple[int, int] | None, cpu_bf16: bool = False) -> Precision:
    """Choose fp16 and bf16 for a model type on a CUDA compute capability (None: a CPU; `cpu_bf16`: bfloat16 is faster on it).

    Decided here because importing Unsloth changes what torch says of bf16. Gemma 3's activations reach about
    800,000, beyond fp16's 65,504, so before Ampere it trains in float32.

    >>> precision("qwen3", (7, 5))[:2], precision("gemma3_text", (7, 5))[:2], precision("qwen3", (9, 0))[:2]
    ((True, False), (False, False), (False, True))
    """
    if capability is None:
        if cpu_bf16:
            return Precision(False, True, "this CPU multiplies bfloat16 faster than float32")
        return Precision(False, False, "this CPU gains nothing from bfloat16")
    if capability >= (8, 0):
        return Precision(False, True, f"compute capability {capability[0]}.{capability[1]} has bfloat16")
    if model_type.startswith("gemma3"):
        return Precision(False, False, "this GPU has no bfloat16 and Gemma 3 overflows float16")
    return Precision(True, False, "this GPU has no bfloat16")


def device_precision(model_type: str) -> Precision:
    """Choose the precision for a model type on the device that torch sees here."""
    import torch

    if torch.cuda.is_available():
        return precision(model_type, torch.cuda.get_device_capability())
    return precision(model_type, None, bf16_pays())


@cache
def bf16_pays() -> bool:
    """Multiply a layer's worth of matrices in both precisions, 0.1 seconds or so, and see.

    What a CPU says of itself does not tell: without AMX a Xeon with AVX512-BF16 takes twice as long in bfloat16.
    """
    import torch

    if not any(torch.cpu.get_capabilities().get(key) for key in ("amx_bf16", "avx512_bf16", "bf16")):
        return False
    pairs = [(torch.ones(512, 640, dtype=d), torch.ones(640, 2048, dtype=d)) for d in (torch.float32, torch.bfloat16)]
    seconds = [[timeit.timeit(lambda a=a, b=b: a @ b, number=1) for a, b in pairs] for _ in range(6)]
    full, half = (min(times) for times in zip(*seconds, strict=True))
    return half * 1.2 < full


def preflight(allow_cpu: bool = True, model_type: str = "gemma3_text") -> Environment:
    """Print versions, device and precision; raise RuntimeError, with the command that mends it, if the job cannot run.

    Nothing is downloaded or imported beyond torch, so a wrong installation costs seconds.
    """
    from packaging.specifiers import SpecifierSet

    versions = {"python": platform.python_version()}
    wrong = []
    for name, wanted in SUPPORTED.items():
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is missing (needs {wanted})")
            continue
        if not SpecifierSet(wanted, prereleases=True).contains(versions[name].partition("+")[0]):
            wrong.append(f"{name} {versions[name]} (needs {wanted})")
    with contextlib.suppress(PackageNotFoundError):
        if not SpecifierSet(TORCHAO).contains(version("torchao").partition("+")[0]):
            wrong.append("torchao is too old for PEFT (pip uninstall -y torchao: it is not needed)")
    if wrong:
        raise RuntimeError(f"not the tested set: {'; '.join(wrong)}.\nRun, then restart the kernel:\n    {INSTALL}")

    import psutil
    import torch

    if torch.cuda.is_available():
        device, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        if capability < (7, 0):
            raise RuntimeError(
                f"{device} has compute capability {capability}; Unsloth needs 7.0 or newer (a T4 has 7.5)"
            )
    elif allow_cpu:
        device, capability = f"CPU ({torch.get_num_threads()} threads)", None
        memory = psutil.virtual_memory().total / 1e9
    else:
        raise RuntimeError(
            "torch sees no GPU. In Colab: Runtime > Change runtime type > T4 GPU. "
            "To run on the CPU all the same: preflight(allow_cpu=True)"
        )
    found = Environment(device, capability, memory, device_precision(model_type), versions)
    flags = "bf16" if found.precision.bf16 else "fp16" if found.precision.fp16 else "float32"
    print(" · ".join(f"{name} {v}" for name, v in versions.items()))
    print(f"{device}, {memory:.0f} GB · {flags}: {found.precision.reason}")
    return found


def prepare_unsloth() -> None:
    """Set what Unsloth reads when it is imported, unless the environment says otherwise.

    No statistics call to a hub; generated code in a folder of this run's own; no torch.compile, which costs a
    short job minutes and earns back seconds (benchmarks/README.md has both): UNSLOTH_COMPILE_DISABLE=0 has it.
    """
    warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars in text are good enough
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it names GPU kernels that a CPU does not need
    for name in ("unsloth.save", "transformers.models.llama.modeling_llama"):  # Unsloth's: they name folders
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    if os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "1") == "1":
        os.environ.setdefault("UNSLOTH_ENABLE_FLEX_ATTENTION", "0")  # uncompiled it writes out all scores
    os.environ.setdefault("UNSLOTH_DECODE_CUDA_GRAPHS", "1")  # Qwen3's answers; Unsloth's default is for RL alone
    os.environ.setdefault("UNSLOTH_CPU_CE_CHUNK_ELEMENTS", str(64 << 20))  # 256 MB of logits at once on a CPU, not 64
    if "UNSLOTH_COMPILE_LOCATION" not in os.environ:
        folder = tempfile.mkdtemp(prefix="unsloth-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["UNSLOTH_COMPILE_LOCATION"] = folder


def keep_freed_memory(keep: bool) -> None:
    """Let glibc keep the memory that is freed, in blocks of up to 32 MB, or give it back to the system, now and later.

    Fresh pages cost a tenth to a quarter of a training step on a CPU; kept, they would grow a long job of many threads.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # not every libc has it
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: the largest block of the heap, where glibc's own adjusting ends
        libc.mallopt(-1, -1 if keep else 64 << 20)  # M_TRIM_THRESHOLD
        if not keep:
            libc.malloc_trim(0)
