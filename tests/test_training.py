"""Training on the real model: what the loss falls on, what stops a run, what a resumed run ends in."""

import copy
import itertools
import random

import pytest
import torch

from pockettune import load_model, make_trainer, save_model, to_dataset
from pockettune.generation import generate, stop_ids
from pockettune.training import check_labels, tokenize

PROMPTS = ["Name a river.", "Name a mountain, in one word please.", "Name a town.", "Name a lake that is deep."]
ANSWERS = ["The Rhine.", "Eiger.", "Ulm is a town on the Danube.", "Baikal, I should think."]


def example(row):
    return {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["q"]}],
        "completion": [{"role": "assistant", "content": row["a"]}],
    }


@pytest.fixture
def dataset():
    return to_dataset([{"q": q, "a": a} for q, a in zip(PROMPTS, ANSWERS, strict=True)], example)


@pytest.fixture
def untouched(loaded):
    """The shared model, with its adapters as they were when the test began."""
    model, tokenizer = loaded
    state = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    yield model, tokenizer
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in state:
                p.copy_(state[name])


def train(model, tokenizer, dataset, folder, resume=None, **settings):
    settings = {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "max_steps": 4, "logging_steps": 1, **settings}
    trainer = make_trainer(model, tokenizer, dataset, output_dir=str(folder), **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_labels_are_the_answer_and_its_stop_token_and_nothing_else(loaded, dataset):
    model, tokenizer = loaded
    for row, answer in zip(tokenize(dataset, model, tokenizer), ANSWERS, strict=True):
        labels = [token for token in row["labels"] if token != -100]
        assert tokenizer.decode(labels) == answer + "<end_of_turn>"
        assert row["input_ids"].count(2) == 1 and len(row["labels"]) == len(row["input_ids"])


def faults():
    def literal_bos(row, stop):
        row["input_ids"] = [2, *row["input_ids"]]
        row["labels"] = [-100, *row["labels"]]

    def ends_on_padding(row, stop):
        row["input_ids"][-1] = row["labels"][-1] = 0

    def prompt_in_the_loss(row, stop):
        row["labels"] = list(row["input_ids"])

    def truncated(row, stop):
        row["input_ids"], row["labels"] = row["input_ids"][:-2], row["labels"][:-2]

    def nothing_learned(row, stop):
        row["labels"] = [-100] * len(row["labels"])

    def newline_after_the_stop(row, stop):
        row["input_ids"].append(107)
        row["labels"].append(107)

    def text_after_the_answer(row, stop):
        row["input_ids"] = [*row["input_ids"], 100]
        row["labels"] = [*row["labels"], -100]

    return [
        literal_bos,
        ends_on_padding,
        prompt_in_the_loss,
        truncated,
        nothing_learned,
        newline_after_the_stop,
        text_after_the_answer,
    ]


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.__name__)
def test_the_label_check_refuses_each_fault(loaded, dataset, fault):
    model, tokenizer = loaded
    rows = [copy.deepcopy(row) for row in tokenize(dataset, model, tokenizer)]
    check_labels(rows, dataset, model, tokenizer)
    fault(rows[2], stop_ids(model))
    with pytest.raises(ValueError, match="row 2"):
        check_labels(rows, dataset, model, tokenizer)


def test_padding_that_ends_answers_is_refused(loaded, dataset):
    model, tokenizer = loaded
    rows, pad = tokenize(dataset, model, tokenizer), tokenizer.pad_token
    tokenizer.pad_token = "<end_of_turn>"
    try:
        with pytest.raises(ValueError, match="row 0: the answer ends with the padding token"):
            check_labels(rows, dataset, model, tokenizer)
    finally:
        tokenizer.pad_token = pad


def test_rows_that_are_too_long_are_counted_and_never_cut(loaded):
    model, tokenizer = loaded
    long = to_dataset([{"q": "word " * 600, "a": "b"}, {"q": "c", "a": "d"}], example)
    with pytest.raises(ValueError, match=r"1 of 2 rows are longer than max_seq_length=384 tokens"):
        make_trainer(model, tokenizer, long, output_dir="unused")


def test_the_trainer_is_trls_with_both_precision_flags_set_and_no_surprises(loaded, dataset, tmp_path):
    import trl

    model, tokenizer = loaded
    trainer = make_trainer(model, tokenizer, dataset, output_dir=str(tmp_path), learning_rate=3e-4)
    assert isinstance(trainer, trl.SFTTrainer)
    assert isinstance(trainer.args.fp16, bool) and isinstance(trainer.args.bf16, bool)
    assert (trainer.args.gradient_accumulation_steps, trainer.args.learning_rate) == (1, 3e-4)
    assert trainer.args.gradient_checkpointing is False


def test_the_cpu_computes_logits_for_the_answer_alone(loaded):
    """Unsloth's CPU loss is in place: half the time of a step. Without it the step still works, only slower."""
    model, _ = loaded
    assert torch.cuda.is_available() or vars(model.base_model.model).get("_unsloth_cpu_chunked_ce")


def test_a_loss_that_is_no_number_stops_the_run(untouched, dataset, tmp_path):
    model, tokenizer = untouched
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"loss is nan at step 1: training stopped"):
        train(model, tokenizer, dataset, tmp_path)


@pytest.mark.parametrize("logs", [{"loss": 0.0}, {"loss": float("inf")}, {"loss": 1.0, "grad_norm": float("nan")}])
def test_losses_of_zero_and_gradients_of_no_number_stop_the_run(loaded, dataset, tmp_path, logs):
    model, tokenizer = loaded
    trainer = make_trainer(model, tokenizer, dataset, output_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match="training stopped"):
        trainer.log(logs)


def test_a_row_in_a_batch_costs_what_it_costs_alone(loaded, dataset, tmp_path):
    """Rows do not see each other: the loss of a batch is the mean over its tokens, each as if alone."""
    model, tokenizer = loaded
    trainer = make_trainer(model, tokenizer, dataset, output_dir=str(tmp_path))
    rows = [trainer.train_dataset[i] for i in (0, 2)]

    def loss(batch):
        count = sum(label != -100 for row in batch for label in row["labels"])
        found = trainer.training_step(model, trainer.data_collator(batch), torch.tensor(count, device=model.device))
        model.zero_grad()
        return found.item()

    model.train()
    counts = [sum(label != -100 for label in row["labels"]) for row in rows]
    alone = sum(loss([row]) * n for row, n in zip(rows, counts, strict=True)) / sum(counts)
    assert loss(rows) == pytest.approx(alone, rel=2e-2)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(untouched, dataset, tmp_path):
    model, tokenizer = untouched
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    weights = lambda: {name: p.detach().clone() for name, p in model.named_parameters() if name in start}  # noqa: E731

    whole = train(model, tokenizer, dataset, tmp_path / "whole", save_strategy="steps", save_steps=2)
    uninterrupted, losses = weights(), [log["loss"] for log in whole.state.log_history if "loss" in log]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in start:
                p.copy_(start[name])
    assert any(not torch.equal(start[name], uninterrupted[name]) for name in start)

    resumed = train(model, tokenizer, dataset, tmp_path / "again", resume=str(tmp_path / "whole/checkpoint-2"))
    for name, p in weights().items():
        assert torch.equal(p, uninterrupted[name]), name
    assert [log["loss"] for log in resumed.state.log_history if "loss" in log] == losses


def test_saved_adapters_carry_no_path_and_answer_the_same(untouched, dataset, tmp_path):
    model, tokenizer = untouched
    train(model, tokenizer, dataset, tmp_path / "run")
    prompt = [example({"q": PROMPTS[0], "a": ""})["prompt"]]
    before = generate(model, tokenizer, prompt, max_new_tokens=8)
    folder = save_model(model, tokenizer, tmp_path / "model")
    assert save_model(model, tokenizer, folder) == folder, "a second save replaces the first"
    assert '"embedded/gemma-3-270m"' in (folder / "adapter_config.json").read_text()
    again, its_tokenizer = load_model(str(folder), 384)
    assert generate(again, its_tokenizer, prompt, max_new_tokens=8) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "run"]


def test_saving_over_something_else_is_refused(loaded, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileExistsError, match="holds no model"):
        save_model(*loaded, tmp_path / "photos")


def test_rows_of_like_length_share_a_step_and_the_steps_come_in_random_order(loaded, root, tmp_path):
    model, tokenizer = loaded
    rows = to_dataset([{"q": "Name a river." * (i % 9 + 1), "a": "The Rhine."} for i in range(103)], example)
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = make_trainer(
        model, tokenizer, rows, output_dir=str(tmp_path), train_sampling_strategy="group_by_length", **settings
    )
    torch.manual_seed(1)
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(103)) and order != list(trainer._get_train_sampler())
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    steps, shuffled = (
        [[lengths[i] for i in rows[at : at + 4]] for at in range(0, 100, 4)]
        for rows in (order, random.Random(1).sample(order, 103))
    )
    assert sum(max(step) - min(step) for step in steps) < sum(max(step) - min(step) for step in shuffled) / 2
    shorter = sum(sum(a) > sum(b) for a, b in itertools.pairwise(steps))
    assert shorter < 18, "transformers' order goes from long to short, again and again: 20 of 24"
