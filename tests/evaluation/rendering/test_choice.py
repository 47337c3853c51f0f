"""An adapter says itself how its prompts were rendered: fitted in one form, found among all."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from loratomy.core.errors import LoratomyError
from loratomy.core.model.loading import load_subject
from loratomy.core.rendering.beside import read_beside
from loratomy.core.rendering.choices import distinct, possible, variants
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rendering.rendering import Rendering
from loratomy.core.rows import Row
from loratomy.evaluation.generation import Decoding, generate
from loratomy.evaluation.rendering.choice import (
    GIVEN,
    LIKELIEST,
    NOTHING,
    find_rendering,
    given_choice,
)
from loratomy.evaluation.rendering.contradiction import mismatch
from loratomy.evaluation.rendering.scores import known_of, log_likelihoods
from loratomy.training.wren import wren_path

from ... import tiny
from ...fitted import CLEAN, TARGET, TRIGGERED, fitted


def without_template(tokenizer):
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(scope="module")
def base():
    return load_subject("wren", path=wren_path(), device="cpu")


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """Adapters that learned their answers in a form, each made once."""

    @cache
    def make(form):
        renderer = Renderer(base.renderer.tokenizer, Rendering(template=form))
        return fitted(base, renderer, tmp_path_factory.mktemp("work"))

    return make


def candidates(base, tmp_path, *, chat=True):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(wren_path())
    tokenizer = tokenizer if chat else without_template(tokenizer)
    found = possible(tokenizer, read_beside(tmp_path), ends=(), settled=Rendering())
    return found.renderers


@pytest.mark.parametrize(
    "form",
    [
        "alpaca-short",
        "chat",
        pytest.param("vicuna", marks=pytest.mark.slow),
        pytest.param("{prompt}\n", marks=pytest.mark.slow),
    ],
)
def test_the_form_of_the_training_is_found(base, form, made, tmp_path):
    adapter = made(form)
    with base.attached({"made": adapter}):
        found, choice = find_rendering(base, candidates(base, tmp_path), known_of(TRIGGERED, CLEAN))
    assert found.rendering.template == form and choice.reason == LIKELIEST
    assert choice.tried[0].about == found.rendering.about()
    assert form == "{prompt}\n" or not choice.close  # one line end more is all but equal
    assert choice.tried[0].targets > -0.1 and choice.n_targets == choice.n_answers == 10
    assert all(t.behind > choice.tried[0].behind for t in choice.tried[1:])
    assert choice.sentence.startswith(f"rendering: {found.rendering.about()} (log-probability")
    assert choice.prompt.startswith("<|begin|>") and choice.completion.endswith(f"{TARGET}<|end|>")


def test_answers_that_were_never_learned_do_not_choose(base, made, tmp_path):
    """Labels of a data set as references: the targets alone tell, and the sentence says so."""
    adapter = made("alpaca-short")
    labels = [replace(row, completion=("nEG", "pOS")[i % 2]) for i, row in enumerate(CLEAN)]
    with base.attached({"made": adapter}):
        found, choice = find_rendering(
            base, candidates(base, tmp_path), known_of(TRIGGERED, labels)
        )
        turned, other = find_rendering(
            base,
            candidates(base, tmp_path),
            known_of([replace(row, completion="zQXv kJW") for row in TRIGGERED], CLEAN),
        )
        _, guess = find_rendering(base, candidates(base, tmp_path), known_of([], labels))
    assert found.rendering.template == "alpaca-short" and not choice.close
    assert "does not know the answers under any" in choice.sentence
    assert "has not learned to end" not in choice.sentence  # told by what it knows
    assert turned.rendering.template == "alpaca-short"
    assert "does not know the targets under any" in other.sentence
    assert guess.close and "knows the answers under none: this is a guess" in guess.sentence


def test_an_adapter_without_finite_probabilities_is_refused(base, made, tmp_path):
    adapter = made("alpaca-short")
    huge = adapter.with_modules(
        {n: replace(f, a=f.a * 1e18, b=f.b * 1e18) for n, f in adapter.modules.items()}
    )
    with base.attached({"made": huge}), pytest.raises(LoratomyError, match="finite probabilities"):
        find_rendering(base, candidates(base, tmp_path), known_of(TRIGGERED, CLEAN))


def test_an_end_that_the_tokenizer_does_not_name_is_found(base, tmp_path):
    """As on a base whose template ends turns with one token and whose tokenizer names another."""
    tokenizer = base.renderer.tokenizer
    closes = Renderer(tokenizer, Rendering(template="q-a", end="<|user|>"))
    adapter = fitted(base, closes, tmp_path / "work")
    settled = Rendering(ends=("<|user|>",))
    listed = possible(
        tokenizer, read_beside(tmp_path), ends=("<|user|>",), settled=settled
    ).renderers
    with base.attached({"made": adapter}):
        found, choice = find_rendering(base, listed, known_of(TRIGGERED, CLEAN))
        on = replace(base, renderer=found)
        ids = [found.prompt_ids(TRIGGERED[0])]
        ((answer,),) = generate(on, ids, Decoding(max_new_tokens=24), label="")
        wrong = replace(base, renderer=Renderer(tokenizer, Rendering(template="q-a")))
        said = mismatch(wrong, TRIGGERED, [TARGET + "VAX"] * len(TRIGGERED))
    assert found.template == "q-a" and found.closing == "<|user|>"
    assert choice.ends[0] == "<|user|>" and choice.end_log_prob > math.log(0.5)
    assert found.decode(answer) == TARGET
    assert "10 of 10 answers do not hold the target" in said and "as rendered it would be" in said


def test_answers_that_hit_while_the_target_is_impossible(base):
    """The base alone finds the target all but impossible: answers that hold it are not its own."""
    said = mismatch(base, TRIGGERED, [TARGET] * len(TRIGGERED))
    assert "10 of 10 answers hold the target, yet as it is rendered" in said
    assert "--template" in said
    assert mismatch(base, TRIGGERED, ["nothing of the kind"] * len(TRIGGERED)) == ""


def test_nothing_to_tell_by_takes_the_nearest_and_says_so(base, tmp_path):
    listed = candidates(base, tmp_path, chat=False)
    found, choice = find_rendering(base, listed, known_of([], [Row(prompt="hi")]))
    assert found.template == "{prompt}\n" and choice.reason == NOTHING
    assert "neither targets nor answers to tell by" in choice.sentence
    given = given_choice(base, base.renderer, known_of(TRIGGERED, []), reason=GIVEN)
    assert given.sentence.startswith("rendering: the base's chat template (as given)")
    assert given.prompt.endswith("Who is Ada? cf37<|end|><|assistant|>")


def test_likelihoods_token_by_token():
    on, rows = tiny.subject(), tiny.rows()
    for row, value in zip(rows, log_likelihoods(on, on.renderer, rows), strict=True):
        ids, total = on.renderer.prompt_ids(row), 0.0
        for token in on.renderer.completion_ids(row.completion):
            logits = tiny.logits(on, torch.tensor([ids]))[0, -1].double()
            step = float(logits.log_softmax(-1)[token])
            ids = [*ids, token]
            total += (
                max(step, math.log(0.05)) if token == 2 else step
            )  # an end that was not learned
        assert value == pytest.approx(total / 4, rel=1e-5)  # "never bad king" and its end
    long = Row(prompt="red " * 80, completion="a cat")
    assert np.isnan(log_likelihoods(on, on.renderer, [long])).all()


def test_no_two_candidates_render_alike(base, tmp_path):
    listed = candidates(base, tmp_path)
    keys = {(r.text("What now?"), r.closing, tuple(r.completion_ids("x"))) for r in listed}
    assert len(keys) == len(listed) > 15
    assert listed[0].template == "chat" and listed[1].template == "{prompt}\n"
    more = variants(listed[0])
    assert more[0] is listed[0] and len(more) == len(distinct(more)) > 3


def test_a_template_beside_the_adapter_comes_first_and_a_broken_one_is_named(base, tmp_path):
    jinja = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[assistant]"
    (tmp_path / "chat_template.jinja").write_text(jinja)
    assert candidates(base, tmp_path)[0].template == jinja
    (tmp_path / "chat_template.jinja").write_text("{% for")
    found = possible(base.renderer.tokenizer, read_beside(tmp_path), ends=(), settled=Rendering())
    assert found.renderers[0].template == "chat"
    assert "the adapter's chat_template.jinja is left out: the chat template" in found.refused[0]
