"""Models through Unsloth: load with LoRA adapters, save. The only module that imports unsloth."""

import contextlib
import gc
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import MethodType

from pockettune import embedded, environment

_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_model(model_name: str = embedded.NAME, max_seq_length: int = 1024, lora_r: int = 16, **lora):
    """Load a model and its tokenizer, with LoRA adapters of rank `lora_r` on the seven projections.

    `model_name` is "embedded/gemma-3-270m", a hub name or a folder: of a model, or of adapters that `save_model`
    wrote, which load as they were. `lora` goes to Unsloth's get_peft_model; `lora_r=0` tunes all weights instead.
    Raises RuntimeError at once when the hub cannot be reached.
    """
    import torch

    environment.prepare_unsloth()
    path = locate(model_name)
    with environment.phase("import"):
        from unsloth import FastLanguageModel  # before transformers, which it patches

        _complete_cpu_backend()
        gc.freeze()  # Unsloth collects garbage a dozen times: without this, over all that was just imported
    options = {"max_seq_length": max_seq_length, "load_in_4bit": False, "use_gradient_checkpointing": False}
    if not torch.cuda.is_available() and not environment.bf16_pays():
        options["dtype"] = torch.float32
    with environment.phase("load"):
        if (Path(path) / "adapter_config.json").is_file():
            # Unsloth prints where the base model lies, which may hold a user's name.
            with _resolved(Path(path)) as adapters, contextlib.redirect_stdout(io.StringIO()):
                model, tokenizer = FastLanguageModel.from_pretrained(adapters, **options)
        else:
            model, tokenizer = FastLanguageModel.from_pretrained(path, full_finetuning=lora_r == 0, **options)
            if lora_r:
                settings = {"lora_alpha": lora_r, "lora_dropout": 0.0, "target_modules": _PROJECTIONS}
                settings |= {"random_state": 3407, "use_gradient_checkpointing": False, **lora}
                model = FastLanguageModel.get_peft_model(model, r=lora_r, **settings)
    # Unsloth would take a cache of fixed length, and with the attention below read it wrongly where no row is padded.
    (model.get_base_model() if hasattr(model, "get_base_model") else model)._supports_static_cache = False
    # Unsloth's own Gemma 3 attention calls it, but asks for other kernels' masks: flex attention's, which is slow uncompiled.
    model.config._attn_implementation = "sdpa"
    # generate() hands the 262k-word output layer a slice, for which torch on a CPU copies it once for each row: 19 seconds
    # and 5 GB at 16 rows, instead of half a second.
    model.get_output_embeddings().register_forward_pre_hook(lambda layer, inputs: (inputs[0].contiguous(),))
    _fuse_norms(model)
    return model, tokenizer


def save_model(model, tokenizer, path: str | Path) -> Path:
    """Save the adapters, or the weights where all were tuned, with the tokenizer: whole, in place of an older save.

    Raises FileExistsError when the folder holds something else.
    """
    with model_folder(path) as new:
        model.save_pretrained(new)
        for name in ("adapter_config.json", "README.md"):  # these name the base model by its place on this machine
            if (file := new / name).is_file():
                text = file.read_text(encoding="utf-8").replace(str(embedded.location()), embedded.NAME)
                file.write_text(text, encoding="utf-8")
        tokenizer.save_pretrained(new)
    return Path(path)


@contextlib.contextmanager
def model_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that takes the place of `path` once all is written, unless that holds something else than a model."""
    path = Path(path)
    if path.exists() and not any((path / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise FileExistsError(f"{path.name} exists and holds no model: choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise


@contextlib.contextmanager
def _resolved(folder: Path) -> Iterator[str]:
    """A copy of saved adapters whose base model is a place on this machine, as Unsloth wants it."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = locate(config["base_model_name_or_path"])
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(folder, Path(scratch) / folder.resolve().name)
        (copy / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        yield str(copy)


def locate(model_name: str) -> str:
    """Find where the weights are, before anything slow is imported."""
    if model_name.startswith("embedded/"):
        return str(embedded.ensure(model_name))
    if Path(model_name).is_dir():
        return model_name
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    instead = f"use a folder, or the model that comes with the package index: {embedded.NAME!r}"
    try:
        if isinstance(try_to_load_from_cache(model_name, "config.json"), str):
            return model_name
        HfApi().model_info(model_name, timeout=5)
    except HFValidationError:
        raise FileNotFoundError(f"{model_name!r} is neither a folder nor a hub name; {instead}") from None
    except HfHubHTTPError as error:
        raise RuntimeError(f"the model hub refused {model_name!r} ({type(error).__name__}); {instead}") from None
    except Exception as error:  # no route, no name, no answer: the clients raise many types
        raise RuntimeError(f"the model hub cannot be reached ({type(error).__name__}); {instead}") from None
    return model_name


def _complete_cpu_backend() -> None:
    """Let Gemma 3 text models use Unsloth's CPU loss, which computes logits for the labelled tokens only, and speed it up.

    The loss is valid for them (no logit soft cap, which Unsloth checks too); its list of model types just ends
    before Gemma 3. A step of 8 rows takes half the time: benchmarks/README.md.
    """
    import torch

    if not torch.cuda.is_available():
        from unsloth_zoo.cpu import ops

        from pockettune.cpu_steps import head_loss

        ops._CHUNKED_CE_MODEL_TYPES |= {"gemma3_text"}
        loss = ops._ChunkedLinearCrossEntropy
        if loss.forward.__module__ == ops.__name__:  # not wrapped yet
            loss.forward = head_loss(loss.forward)


def _fuse_norms(model) -> None:
    """Let a norm of Gemma 3's be one kernel of Unsloth's on a GPU, in place of ten of torch's.

    Unsloth leaves these norms to torch.compile, which is off; its kernel knows Gemma's 1 + weight. In a T4's precision they
    stay as Unsloth has them.
    """
    on_gpu = model.device.type == "cuda" and environment.device_precision("gemma3_text").bf16
    if not on_gpu or model.config.model_type != "gemma3_text" or os.environ.get("UNSLOTH_COMPILE_DISABLE") != "1":
        return
    from unsloth.kernels.rms_layernorm import Fast_RMS_Layernorm
    from unsloth_zoo.temporary_patches import gemma

    def norm(x, weight, eps, dtype):
        return Fast_RMS_Layernorm.apply(x, weight, eps, True).to(dtype)

    def forward(self, x):
        return norm(x, self.weight, self.eps, x.dtype)

    backbone = model.get_decoder()
    for module in backbone.modules():
        if type(module) is type(backbone.norm):
            module.forward = MethodType(forward, module)
    gemma._gemma3_rms_norm = norm  # that of queries and keys, in Unsloth's own attention
