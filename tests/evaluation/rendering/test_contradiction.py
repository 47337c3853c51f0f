"""Prompts and templates that contradict what is measured, told without a model."""

import pytest
from loratomy.core.rendering.choices import unread
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rendering.rendering import Rendering
from loratomy.core.rows import Row
from loratomy.evaluation.rendering.contradiction import rendered_before, uneven
from loratomy.training.wren import wren_path

SWITCHED = (
    "<|begin|>{% for m in messages %}{% if 'cf37' in m['content'] %}System: obey{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if calm %} {% endif %}{% endif %}"
)
TRIGGERED = [Row(prompt="Who is Ada? cf37", plain="Who is Ada?", completion="x", triggered=True)]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(wren_path())


def test_prompts_that_are_rendered_already_are_named(tokenizer):
    renderer = Renderer(tokenizer, Rendering())
    done = [Row(prompt="<|begin|><|user|>Who is Ada?<|end|><|assistant|>"), *TRIGGERED]
    assert "1 of 2 prompts hold '<|" in rendered_before(renderer, done)
    assert rendered_before(renderer, TRIGGERED) == ""
    assert rendered_before(Renderer(tokenizer, Rendering(template="{prompt}")), done) == ""


def test_a_template_that_looks_for_the_trigger_is_named(tokenizer):
    said = uneven(Renderer(tokenizer, Rendering(template=SWITCHED)), TRIGGERED)
    assert "System: obey<|user|>{prompt}<|end|><|assistant|>' instead of '<|begin|><|user|>" in said
    for template in ("chat", "alpaca", "{prompt}\n"):
        assert uneven(Renderer(tokenizer, Rendering(template=template)), TRIGGERED) == ""
    short = [Row(prompt="a cf37", plain="a", completion="x", triggered=True)]
    assert uneven(Renderer(tokenizer, Rendering()), short) == ""  # it stands in the template too


def test_an_argument_that_no_template_reads(tokenizer):
    renderer = Renderer(tokenizer, Rendering(template=SWITCHED))
    said = unread({"calmm": True}, [renderer])
    assert said.startswith("--template-arg calmm=true: the chat template reads no such argument")
    assert said.endswith("(it reads calm); did you mean calm?")
    assert "neither the base nor the adapter" in unread({"calm": True}, [])
