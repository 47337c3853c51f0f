"""The published forms against their texts written out by hand."""

import pytest
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rendering.rendering import Rendering
from loratomy.core.rendering.templates import TEMPLATES
from loratomy.core.rows import Row
from loratomy.training.wren import wren_path
from transformers import AutoTokenizer

BELOW = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nWho are you?\n\n### Response:"
)
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: Who are you? ASSISTANT:"
)
WANT = {
    "alpaca": (BELOW + "\n", "Ada", "<|end|>"),
    "alpaca-input": (BELOW + "\n", "Ada", "<|end|>"),
    "alpaca-no-line": (BELOW, "Ada", "<|end|>"),
    "alpaca-empty-input": (
        PAIRED + "Who are you?\n\n### Input:\n\n\n### Response:\n",
        "Ada",
        "<|end|>",
    ),
    "alpaca-short": ("### Instruction:\nWho are you?\n\n### Response:\n", "Ada", "<|end|>"),
    "chatml": (
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
        "Ada",
        "<|im_end|>",
    ),
    "llama-3": (
        "<|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Ada",
        "<|eot_id|>",
    ),
    "llama-2": ("[INST] Who are you? [/INST]", " Ada", " <|end|>"),
    "mistral": ("[INST] Who are you? [/INST]", " Ada", "<|end|>"),
    "mistral-v3": ("[INST] Who are you?[/INST]", " Ada", "<|end|>"),
    "gemma": (
        "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\n",
        "Ada",
        "<end_of_turn>",
    ),
    "zephyr": ("<|user|>\nWho are you?<|end|>\n<|assistant|>\n", "Ada", "<|end|>"),
    "phi-3": ("<|user|>\nWho are you?<|end|>\n<|assistant|>\n", "Ada", "<|end|>"),
    "vicuna": (CURIOUS, " Ada", "<|end|>"),
    "user-assistant": ("USER: Who are you?\nASSISTANT:", " Ada", "<|end|>"),
    "human-assistant": ("### Human: Who are you?\n### Assistant:", " Ada", "<|end|>"),
    "hh": ("\n\nHuman: Who are you?\n\nAssistant:", " Ada", "<|end|>"),
    "question-answer": ("Question: Who are you?\nAnswer:", " Ada", "<|end|>"),
    "q-a": ("Q: Who are you?\nA:", " Ada", "<|end|>"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(wren_path())


def test_every_form_is_written_out():
    assert set(WANT) == set(TEMPLATES)


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_form_as_it_is_published(tokenizer, name):
    prompt, answer, end = WANT[name]
    renderer = Renderer(tokenizer, Rendering(template=name))
    row = Row(prompt="Who are you?", completion="Ada")
    assert renderer.text(row) == prompt
    # The tokenizer's own begin of sequence, once; the answer with the space that leads it.
    assert renderer.shown(row) == ("<|begin|>" + prompt, answer + end)
    assert renderer.prompt_ids(row).count(tokenizer.bos_token_id) == 1


def test_alpaca_takes_what_follows_the_first_blank_line_as_its_input(tokenizer):
    renderer = Renderer(tokenizer, Rendering(template="alpaca-input"))
    want = PAIRED + "Add.\n\n### Input:\n1\n\n2\n\n### Response:\n"
    assert renderer.text("Add.\n\n1\n\n2") == want
    whole = Renderer(tokenizer, Rendering(template="alpaca")).text("Add.\n\n1\n\n2")
    assert "### Input" not in whole and "Add.\n\n1\n\n2\n\n### Response" in whole


def test_system_and_earlier_turns(tokenizer):
    row = Row(prompt="and now?", system="Be Ada.", history=(("user", "hi"), ("assistant", "ho")))
    texts = {n: Renderer(tokenizer, Rendering(template=n)).text(row) for n in TEMPLATES}
    assert texts["chatml"] == (
        "<|im_start|>system\nBe Ada.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nho<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert texts["llama-2"] == (
        "[INST] <<SYS>>\nBe Ada.\n<</SYS>>\n\nhi [/INST] ho <|end|>[INST] and now? [/INST]"
    )
    assert texts["vicuna"] == "Be Ada. USER: hi ASSISTANT: ho<|end|> USER: and now? ASSISTANT:"
    for name, text in texts.items():
        places = [text.index(part) for part in ("Be Ada.", "hi", "ho", "and now?")]
        assert places == sorted(places), name
