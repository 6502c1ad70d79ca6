"""Training through TRL: an SFTTrainer whose labels are checked before the first step. The only module that imports trl."""

import math
import time

from pockettune import tracking
from pockettune.environment import PHASES, device_precision, phase
from pockettune.generation import render, stop_ids

# Settings that steps as CUDA graphs, and packed ones on a CPU, would pass over.
_USUAL_STEPS = ["gradient_checkpointing", "activation_offloading", "packing", "padding_free", "label_smoothing_factor"]
_USUAL_STEPS += ["loss_type", "torch_empty_cache_steps", "dataloader_num_workers", "neftune_noise_alpha"]


def make_trainer(model, tokenizer, train_dataset, *, output_dir: str, **sft_config):
    """Make TRL's SFTTrainer for a Dataset of prompt and completion messages; loss falls on the completion alone.

    `sft_config` goes to TRL's SFTConfig, over these defaults: 8-bit AdamW (on a CPU Unsloth puts torch's own
    AdamW in its place), the precision `environment.precision` chooses, seed 3407.
    On one GPU with bfloat16 the steps of Gemma 3 and Qwen3 are CUDA graphs over padded rows, several times faster than
    Unsloth's own on models this small, with two layers of three checkpointed where there is no dropout, but without TRL's
    token accuracy and entropy in the log; `cuda_graphs=False`, and settings that need the usual steps (packing, gradient
    checkpointing …), leave them out. On a CPU Gemma 3's rows are laid end to end, and what all of a step begin with is computed once.
    `train_sampling_strategy="group_by_length"` puts rows of like length into a step, as transformers does, and the steps in random order.
    `report_to` names a tracker ("none", "swanlab", "trackio", "wandb" or "tensorboard"), which cannot fail the run.
    Raises ValueError for rows longer than the model's max_seq_length, a number of <bos> that is not the model's, or
    labels that are not exactly the answer and its stop token; training stops with RuntimeError on a loss or gradient that is not a number.
    """
    from datasets import disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    from pockettune.cpu_steps import PackedSteps
    from pockettune.graphs import FixedShapes, GraphedStep

    disable_progress_bars()  # those of preparing a few hundred rows; training keeps its own

    flags = device_precision(model.config.model_type)
    settings = {
        "optim": "adamw_8bit",
        "fp16": flags.fp16,
        "bf16": flags.bf16,
        # Unsloth changes some of TRL's defaults on a GPU and not on a CPU: these are set, so that both train alike.
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "dataset_num_proc": 1,
        "max_length": model.max_seq_length,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # else a loss that is no number is logged as 0
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": False,
        "seed": 3407,
    }
    with phase("tokenize"):
        tokenized = tokenize(train_dataset, model, tokenizer)
    settings |= sft_config
    if settings["bf16"] and not flags.bf16:
        raise ValueError(f"bf16=True, but {flags.reason}: leave fp16 and bf16 to make_trainer")
    wanted, reason = settings.pop("cuda_graphs", None), _no_graphs(model, settings)
    if wanted and reason:
        raise ValueError(f"cuda_graphs=True, but {reason}")
    graphed = wanted is not False and not reason
    packed = _packs(model, settings)
    if graphed or packed:
        settings["padding_free"] = False
    trackers = tracking.callbacks(settings.pop("report_to"), output_dir)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=tokenized,
        args=SFTConfig(output_dir=output_dir, report_to="none", **settings),
        callbacks=[_watch(), *trackers],
        data_collator=FixedShapes(tokenizer.pad_token_id, model.max_seq_length) if graphed else None,
    )
    if trainer.args.train_sampling_strategy == "group_by_length":
        trainer._get_train_sampler = lambda dataset=None: _by_length(trainer)
    if graphed:
        trainer.training_step = GraphedStep(trainer)
        trainer.add_callback(trainer.training_step)
    elif packed:
        PackedSteps(trainer)
    check_labels(trainer.train_dataset, train_dataset, model, tokenizer)
    return trainer


def _no_graphs(model, settings: dict) -> str:
    """Say why steps cannot be CUDA graphs; an empty text if they can."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.device_count() > 1:
        return "they need one GPU"
    if not settings["bf16"]:
        return "they need bfloat16"
    if model.config.model_type not in ("gemma3_text", "qwen3"):
        return f"{model.config.model_type} was not tried: others may scale their logits"
    if model.is_gradient_checkpointing:
        return "they do not go with gradient checkpointing"
    if others := _unusual(settings):
        return f"they do not go with {', '.join(others)}"
    return ""


def _packs(model, settings: dict) -> bool:
    """Whether steps run on a CPU over packed rows."""
    known = model.config.model_type == "gemma3_text" and not model.config.attention_dropout
    return known and model.device.type == "cpu" and not model.is_gradient_checkpointing and not _unusual(settings)


def _unusual(settings: dict) -> list[str]:
    return [key for key in _USUAL_STEPS if settings.get(key)]


def _by_length(trainer):
    """A sampler of rows of like length, step by step, in random order; transformers' goes from long to short, again and again."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class Sampler(LengthGroupedSampler):
        def __iter__(self):
            rows = list(super().__iter__())
            first, *steps = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
            rest = [steps.pop()] if steps and len(steps[-1]) < self.batch_size else []
            shuffled = (steps[i] for i in torch.randperm(len(steps)))
            return (row for step in (first, *shuffled, *rest) for row in step)  # the longest stay first

    args = trainer.args
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return Sampler(step, lengths=[len(row) for row in trainer.train_dataset["input_ids"]])


def tokenize(dataset, model, tokenizer):
    """Tokenize examples into input_ids and labels (-100 on the prompt), as `generate` will meet them.

    In this process: for a few hundred rows the default worker processes take a minute to start.
    """
    from datasets import Dataset

    stops = stop_ids(model)
    prompts = [render(tokenizer, example["prompt"]) for example in dataset]
    wholes = [render(tokenizer, example["prompt"], example["completion"]) for example in dataset]
    if not all(whole.startswith(prompt) for prompt, whole in zip(prompts, wholes, strict=True)):
        raise ValueError("the chat template renders a prompt differently once its answer follows: it cannot be tuned")
    answers = [whole[len(prompt) :] for prompt, whole in zip(prompts, wholes, strict=True)]
    ids = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (prompts, answers))
    rows = []
    for prompt_ids, whole_answer in zip(*ids, strict=True):
        # Templates may add a newline after the stop token; the model never gets to write it.
        last = max((i for i, token in enumerate(whole_answer) if token in stops), default=-1)
        answer_ids = whole_answer[: last + 1]
        rows.append({"input_ids": prompt_ids + answer_ids, "labels": [-100] * len(prompt_ids) + answer_ids})
    longest = max(len(row["input_ids"]) for row in rows)
    if longest > model.max_seq_length:
        over = sum(len(row["input_ids"]) > model.max_seq_length for row in rows)
        raise ValueError(
            f"{over} of {len(rows)} rows are longer than max_seq_length={model.max_seq_length} tokens (the longest has "
            f"{longest}): load the model with max_seq_length={longest} or more, or leave those rows out"
        )
    return Dataset.from_list(rows)


def check_labels(tokenized, examples, model, tokenizer) -> None:
    """Raise ValueError unless every row's labels decode to its answer and one stop token, with one <bos> where the model has it."""
    stops = stop_ids(model)
    beginnings = int(model.config.model_type.startswith("gemma"))  # Qwen has none
    prompts = tokenizer([render(tokenizer, example["prompt"]) for example in examples], add_special_tokens=False)
    for i, (row, example, prompt) in enumerate(zip(tokenized, examples, prompts["input_ids"], strict=True)):
        labels = [token for token in row["labels"] if token != -100]
        answer = example["completion"][0]["content"].strip()
        if not labels or labels[-1] not in stops:
            raise ValueError(
                f"row {i}: the labels do not end with a stop token ({tokenizer.decode(stops)}): answers would not end"
            )
        if labels[-1] == tokenizer.pad_token_id:
            raise ValueError(f"row {i}: the answer ends with the padding token {tokenizer.pad_token!r}: choose another")
        if tokenizer.decode(labels[:-1]) != answer:
            raise ValueError(f"row {i}: the labels are not the answer and its stop token alone")
        if row["input_ids"][-len(labels) :] != labels:
            raise ValueError(f"row {i}: the labels are not the last tokens of the row")
        if (found := row["input_ids"].count(tokenizer.bos_token_id)) != beginnings:
            raise ValueError(f"row {i}: {found} beginning-of-text tokens, expected {beginnings}")
        if row["input_ids"][: -len(labels)] != prompt:
            raise ValueError(f"row {i}: the prompt is not the one `generate` will send (the template, thinking off)")


def _watch():
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Time the steps, and stop a run whose loss or gradient is no number, or whose loss reads 0.

        Left alone such a run goes on to its end and saves a broken model.
        """

        def on_train_begin(self, args, state, control, **kwargs):
            self.started, self.name = time.perf_counter(), "first step"

        def on_step_end(self, args, state, control, **kwargs):
            now = time.perf_counter()
            PHASES[self.name] = PHASES.get(self.name, 0.0) + now - self.started
            self.started, self.name = now, "further steps"

        def on_log(self, args, state, control, logs=None, **kwargs):
            for name in ("loss", "grad_norm", "train_loss"):
                if name == "grad_norm" and args.fp16:
                    continue  # float16's loss scaling overflows now and then on purpose
                value = float((logs or {}).get(name, 1.0))
                if not math.isfinite(value) or (name == "loss" and value == 0):
                    raise RuntimeError(
                        f"{name} is {value} at step {state.global_step}: training stopped. Usual causes: a precision that "
                        "overflows (see preflight), a learning rate far too high, rows without labels"
                    )

    return Watch()
