"""Qwen3 with its real tokenizer: renderings, labels, geometry; weights are random, the real ones are on no index."""

import copy
import json

import pytest
import qwen3

from pockettune import load_model, make_trainer, to_dataset
from pockettune.generation import render, stop_ids
from pockettune.tasks import complaints
from pockettune.training import check_labels, tokenize

ROWS = [
    {"input": "我是周敏，电梯坏了！", "output": '{"name":"周敏","address":null,"email":null,"question":"电梯坏了！"}'},
    {
        "input": "停水三天 a@example.com",
        "output": '{"name":null,"address":null,"email":"a@example.com","question":"停水三天"}',
    },
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = qwen3.write(tmp_path_factory.mktemp("qwen3"), qwen3.TINY)
    return load_model(str(folder), 256, lora_r=8, lora_alpha=32, lora_dropout=0.1)


def test_the_tokenizer_is_qwen3_s(goldens):
    tokenizer = qwen3.tokenizer()
    wrong = [
        g["text"]
        for g in goldens["tokens"]
        if tokenizer(g["text"], add_special_tokens=False)["input_ids"] != g["qwen3"]
    ]
    assert wrong == [] and len(goldens["tokens"]) > 200
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "你好"}]
    assert render(tokenizer, prompt) == goldens["chats"]["qwen3"]["prompt"]
    whole = render(tokenizer, prompt, [{"role": "assistant", "content": '{"a": 1}'}])
    assert whole == goldens["chats"]["qwen3"]["full"]


def test_the_adapters_of_the_real_geometry_are_as_many_as_published(capsys):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from pockettune.models import _PROJECTIONS

    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**qwen3.GEOMETRY))
        assert sum(p.numel() for p in model.parameters()) == 596_049_920
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=_PROJECTIONS))
    model.print_trainable_parameters()
    assert "5,046,272 || all params: 601,096,192 || trainable%: 0.8395" in capsys.readouterr().out


def test_the_end_of_the_turn_is_learned_and_the_empty_thought_is_not(tiny):
    model, tokenizer = tiny
    assert stop_ids(model)[0] == qwen3.STOP and tokenizer.pad_token_id == qwen3.END
    for row, given in zip(tokenize(to_dataset(ROWS, complaints.to_example), model, tokenizer), ROWS, strict=True):
        labels = [token for token in row["labels"] if token != -100]
        assert tokenizer.decode(labels) == given["output"] + "<|im_end|>"
        prompt = tokenizer.decode(row["input_ids"][: -len(labels)])
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") and "<s>" not in prompt


def as_the_article(example, tokenizer, max_length, *, literal_s, wrong_end, thinking, cut):
    """The preprocessing of a widely copied tutorial, each of its faults by a switch."""
    system, user = (message["content"] for message in example["prompt"])
    prompt = "<s>" * literal_s + f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    prompt += "<|im_start|>assistant\n" + ("" if thinking else "<think>\n\n</think>\n\n")
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(example["completion"][0]["content"], add_special_tokens=False)["input_ids"]
    answer.append(qwen3.END if wrong_end else qwen3.STOP)
    row = {"input_ids": prompt_ids + answer, "labels": [-100] * len(prompt_ids) + answer}
    return {key: ids[:-4] if cut else ids for key, ids in row.items()} if max_length else row


FAULTS = {
    "literal_s": "the prompt is not the one",
    "wrong_end": "labels do not end with a stop token",
    "thinking": "the prompt is not the one",
    "cut": "labels do not end with a stop token",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_label_check_refuses_each_fault_of_the_tutorial(tiny, fault, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(model.generation_config, "eos_token_id", [qwen3.STOP])
    examples = to_dataset(ROWS, complaints.to_example)
    switches = dict.fromkeys(FAULTS, False)
    rows = [as_the_article(example, tokenizer, 256, **switches) for example in examples]
    check_labels(rows, examples, model, tokenizer)
    rows[1] = as_the_article(examples[1], tokenizer, 256, **(switches | {fault: True}))
    with pytest.raises(ValueError, match=f"row 1: .*({FAULTS[fault]})"):
        check_labels(copy.deepcopy(rows), examples, model, tokenizer)


def test_bfloat16_where_the_gpu_has_none_is_refused(tiny, monkeypatch, tmp_path):
    """The tutorial hard-codes bf16, which a T4 only emulates."""
    from pockettune import training
    from pockettune.environment import precision

    model, tokenizer = tiny
    monkeypatch.setattr(training, "device_precision", lambda model_type: precision(model_type, (7, 5)))
    with pytest.raises(ValueError, match="bf16=True, but this GPU has no bfloat16"):
        make_trainer(model, tokenizer, to_dataset(ROWS, complaints.to_example), output_dir=str(tmp_path), bf16=True)


def test_a_step_of_training_and_a_held_answer(tiny, tmp_path):
    from pockettune import generate

    model, tokenizer = tiny
    examples = to_dataset(ROWS, complaints.to_example)
    trainer = make_trainer(
        model, tokenizer, examples, output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2
    )
    trainer.train()
    prompts, grammars = [e["prompt"] for e in examples], [complaints.grammar(row) for row in ROWS]
    for row, text in zip(ROWS, generate(model, tokenizer, prompts, grammar=grammars, max_new_tokens=200), strict=True):
        assert all(value is None or value in row["input"] for value in json.loads(text).values())
