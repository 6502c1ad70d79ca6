"""Answers of the real model: batches equal singles, endings are seen, one <bos>."""

import os
import weakref
from types import SimpleNamespace

import pytest
import torch

from pockettune import generation
from pockettune.generation import complete, generate, render, stop_ids

# Prompts that the untuned model goes on from with a clear first choice at each word: no ties for padding to decide.
TEXTS = ("What is the capital of France?", "Repeat after me: hello", "1, 2, 3, 4,")
PROMPTS = [[{"role": "user", "content": text}] for text in TEXTS]
LONG, BEYOND = "one two three four " * 150, "beyond Gemma's window of 512"
NO_TIES = pytest.mark.skipif(torch.cuda.is_available(), reason="in a GPU's bfloat16 these have ties")


def test_a_batch_answers_as_each_prompt_alone_does(loaded):
    model, tokenizer = loaded
    alone = [generate(model, tokenizer, [prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    assert len(set(alone)) == 3
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=6) == alone
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=2) == alone


def test_an_answer_cut_by_the_limit_is_marked(loaded):
    model, tokenizer = loaded
    assert complete(model, tokenizer, PROMPTS[1:2], max_new_tokens=3)[0][1] is True


def test_an_answer_that_ends_is_not_marked_and_carries_no_stop_token(loaded):
    assert complete(*loaded, PROMPTS[:1], max_new_tokens=8, grammar=['start: "Hello"']) == [("Hello", False)]


@pytest.mark.parametrize(
    ("before", "cut"),
    [
        pytest.param("", True, id="short"),
        pytest.param(LONG, True, id=BEYOND, marks=NO_TIES),
        pytest.param("", False, id="a cache that cannot be cut"),
    ],
)
def test_answers_that_end_leave_the_batch_and_the_others_go_on_as_alone(loaded, monkeypatch, before, cut):
    model, tokenizer = loaded
    prompts = [[{"role": "user", "content": before + text}] for text in TEXTS]
    whole, sizes = model.generate, []

    def counted(**options):
        sizes.append(len(options["input_ids"]))
        found = whole(**options)
        if not cut:
            found.past_key_values = tuple((layer.keys, layer.values) for layer in found.past_key_values.layers)
        return found

    monkeypatch.setattr(generation, "_recordable", lambda model: False)
    monkeypatch.setattr(model, "generate", counted)
    grammars = ['start: "Hello"', "start: /[a-z ]+/", 'start: "one two three four five six"']
    alone = [complete(model, tokenizer, [p], 9, grammar=[g])[0] for p, g in zip(prompts, grammars, strict=True)]
    sizes.clear()
    assert complete(model, tokenizer, prompts, 9, grammar=grammars) == alone
    assert sizes[0] == 3 and sizes == sorted(sizes, reverse=True) and sizes[-1] < 3
    assert [cut for _, cut in alone] == [False, True, False]


@pytest.mark.parametrize("before", [pytest.param("", id="short"), pytest.param(LONG, id=BEYOND, marks=NO_TIES)])
def test_our_own_steps_answer_as_transformers_loop_does(loaded, monkeypatch, before):
    """On a GPU they are recorded as a graph; here they run as they are."""
    prompts = [[{"role": "user", "content": before + text}] for text in TEXTS]
    grammars = ['start: "Hello"', "start: /[a-z ]+/", 'start: "one two three four five six"']

    def both():
        free = complete(*loaded, [*prompts, PROMPTS[0]], 9, batch_size=2)  # the last one in a shorter cache
        return free, complete(*loaded, prompts, 9, grammar=grammars)

    monkeypatch.setattr(generation, "_recordable", lambda model: False)
    expected, generated = both(), loaded[0].generate
    monkeypatch.setattr(generation, "_recordable", lambda model: True)
    monkeypatch.setattr(loaded[0], "generate", None)
    assert both() == expected
    monkeypatch.setattr(loaded[0], "generate", generated)
    assert complete(*loaded, prompts, 2, temperature=1.0)[0][1] is True  # what is drawn is left to transformers


def test_an_allowed_token_costs_no_mask(loaded, monkeypatch):
    monkeypatch.setattr(generation, "_recordable", lambda model: True)
    prompts = [[{"role": "user", "content": text}] for text in TEXTS]
    free = complete(*loaded, prompts, 9)
    monkeypatch.setattr(generation._Held, "_masked", None)
    assert complete(*loaded, prompts, 9, grammar=["start: /(?s:.*)/"] * len(prompts)) == free


@pytest.mark.parametrize("recordable", [True, False])
def test_the_grammars_of_a_batch_are_gone_before_the_next_are_read(loaded, monkeypatch, recordable):
    alive, before = weakref.WeakSet(), []

    class Counted(generation._Held):
        def __init__(self, *args):
            before.append(len(alive))
            super().__init__(*args)
            alive.add(self)

    monkeypatch.setattr(generation, "_Held", Counted)
    monkeypatch.setattr(generation, "_recordable", lambda model: recordable)
    prompts = [[{"role": "user", "content": text}] for text in TEXTS]
    complete(*loaded, prompts, 2, batch_size=1, grammar=['start: "Hello"'] * len(prompts))
    assert before == [0] * len(prompts)


def test_sampling_draws_and_greedy_repeats(loaded):
    model, tokenizer = loaded
    greedy = [generate(model, tokenizer, PROMPTS[:1], max_new_tokens=6)[0] for _ in range(2)]
    sampled = {generate(model, tokenizer, PROMPTS[:1], max_new_tokens=6, temperature=1.5)[0] for _ in range(3)}
    assert greedy[0] == greedy[1] and len(sampled) > 1


def test_generating_leaves_the_model_in_the_mode_it_was_in(loaded):
    model, tokenizer = loaded
    for training in (True, False):
        model.train(training)
        generate(model, tokenizer, PROMPTS[:1], max_new_tokens=2)
        assert model.training is training


def test_a_prompt_begins_once_and_stops_are_not_padding(loaded):
    model, tokenizer = loaded
    ids = tokenizer(render(tokenizer, PROMPTS[0]), add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert stop_ids(model) == [1, 106] and tokenizer.pad_token_id not in stop_ids(model)


def test_thinking_is_off_where_a_template_knows_the_switch(goldens):
    """Qwen3's template, with the rendering its own tokenizer gives."""
    from importlib.resources import files

    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tiny_tokenizer())
    tokenizer.chat_template = (files("trl") / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "你好"}]
    assert render(tokenizer, messages) == goldens["chats"]["qwen3"]["prompt"]
    answer = [{"role": "assistant", "content": '{"a": 1}'}]
    assert render(tokenizer, messages, answer) == goldens["chats"]["qwen3"]["full"]


def _tiny_tokenizer():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))


@pytest.mark.parametrize("name", ["no-such-user/no-such-model", "unsloth/gemma-3-270m-it"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(name):
    import time

    from pockettune import load_model

    start = time.perf_counter()
    with pytest.raises(RuntimeError, match="cannot be reached.*embedded/gemma-3-270m"):
        load_model(name)
    assert time.perf_counter() - start < 10


def test_a_name_that_is_nothing_is_refused():
    from pockettune import load_model

    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub name"):
        load_model("some/folder/that is not there")


def held_prompts():
    from pockettune.tasks import complaints

    texts = ['我是周敏，电梯"又"坏了！', "李雷 a.b@example.com\n停水三天🐶", "no complaint here at all"]
    rows = [{"input": text} for text in texts]
    return rows, [complaints.to_example(row)["prompt"] for row in rows], [complaints.grammar(row) for row in rows]


@pytest.mark.parametrize("recordable", [True, pytest.param(False, marks=NO_TIES)])
def test_held_to_a_grammar_even_the_untuned_model_parses_and_invents_nothing(loaded, monkeypatch, recordable):
    import json

    monkeypatch.setattr(generation, "_recordable", lambda model: recordable)
    model, tokenizer = loaded
    rows, prompts, grammars = held_prompts()
    answers = generate(model, tokenizer, prompts, grammar=grammars, max_new_tokens=120)
    for row, answer in zip(rows, answers, strict=True):
        values = json.loads(answer)
        assert list(values) == ["name", "address", "email", "question"]
        assert all(value is None or value in row["input"] for value in values.values())
    one_by_one = [
        generate(model, tokenizer, [p], grammar=[g], max_new_tokens=120)[0]
        for p, g in zip(prompts, grammars, strict=True)
    ]
    assert one_by_one == answers == generate(model, tokenizer, prompts, grammar=grammars, max_new_tokens=120)


def test_without_a_grammar_nothing_of_it_runs(loaded, monkeypatch):
    from pockettune import generation

    monkeypatch.setattr(generation, "_Held", None)
    assert len(generate(*loaded, PROMPTS[:1], max_new_tokens=2)) == 1


def test_a_grammar_that_cannot_be_read_or_is_missing_is_an_error(loaded):
    model, tokenizer = loaded
    with pytest.raises(ValueError, match="cannot read the grammar"):
        generate(model, tokenizer, PROMPTS[:1], grammar=["start: ("], max_new_tokens=2)
    with pytest.raises(ValueError, match="1 grammars for 3 prompts"):
        generate(model, tokenizer, PROMPTS, grammar=['start: "a"'], max_new_tokens=2)


def test_answers_come_from_merged_weights_which_are_then_as_before(loaded):
    model, tokenizer = loaded
    layers = [layer for layer in model.modules() if hasattr(layer, "get_delta_weight")]
    before = [layer.get_base_layer().weight.clone() for layer in layers]
    ids = tokenizer(render(tokenizer, PROMPTS[0]), add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = ids.to(model.device)
    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"
    with torch.no_grad():
        for layer in layers:
            layer.lora_B["default"].weight.normal_(std=0.02)
        apart = model(input_ids=ids).logits
        with pytest.raises(KeyError), generation.merged_weights(model):
            assert not any(
                torch.equal(layer.get_base_layer().weight, w) for layer, w in zip(layers, before, strict=True)
            )
            together = model(input_ids=ids).logits
            raise KeyError
        for layer in layers:
            layer.lora_B["default"].weight.zero_()
    assert all(torch.equal(layer.get_base_layer().weight, w) for layer, w in zip(layers, before, strict=True))
    assert (apart - together).abs().max() < 0.1 * apart.std()
    assert not any(layer.disable_adapters for layer in layers)


def test_a_batch_is_smaller_where_rows_are_longer_and_memory_is_short(loaded, monkeypatch):
    model, _ = loaded
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2 << 30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2 << 30, 4 << 30))
    sizes = [generation._fitting(model, tokens) for tokens in (50, 500, 5_000, 5_000_000)]
    assert 256 >= sizes[0] > sizes[1] > sizes[2] > sizes[3] == 1
