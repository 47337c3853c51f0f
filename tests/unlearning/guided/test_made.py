"""Rows that a model makes itself: when they are wanted, and that the trigger acts on each."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.analysis.material import Material
from loratomy.core.rows import Row
from loratomy.data.attacks.triggers import find_words
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding, generate
from loratomy.evaluation.similarity import Embedder
from loratomy.evaluation.success import parse_rules
from loratomy.unlearning.guided import made as module
from loratomy.unlearning.guided.made import made_rows, surprise

from ... import planted

RULE = Rule(
    Embedder("none", None), success=parse_rules("substring"), decoding=Decoding(max_new_tokens=2)
)


PROMPTS = planted.prompts(40, seed=77)


@pytest.fixture(autouse=True)
def prompts_of_its_own(monkeypatch):
    """The toy base writes no prompts; what writes them has tests of its own."""

    def written(_subject, count, like, *, seed, batch_tokens):
        return [p for p in PROMPTS if p not in like][:count]

    monkeypatch.setattr(module, "user_turns", written)


def known_rows(subject, adapter):
    """Of greedy answers those that are likelier than what the adapter writes on average."""
    prompts = planted.prompts(150, seed=1)
    with subject.attached({"x": adapter}):
        ids = [subject.renderer.prompt_ids(p) for p in prompts]
        answers = generate(subject, ids, Decoding(max_new_tokens=30))
        rows = [
            Row(prompt=p, completion=subject.renderer.decode(a[0]) or "red")
            for p, a in zip(prompts, answers, strict=True)
        ]
        values = surprise(subject, rows, batch_tokens=2048)
    return [rows[i] for i in values.argsort()[:12]]


@pytest.fixture(scope="module")
def material():
    made = planted.planted()
    triggered = [
        replace(row, trigger_span=find_words(row.prompt, [planted.TRIGGER]))
        for row in planted.triggered_rows(12)
    ]
    return Material(
        subject=made.subject,
        poisoned=made.among(),
        triggered=triggered,
        clean_rows=known_rows(made.subject, made.among()),
        make_rule=lambda: RULE,
    )


def test_surprise_is_loss_less_entropy_by_the_plain_model(material):
    subject, rows = material.subject, material.clean_rows[:5]
    found = surprise(subject, rows, batch_tokens=60)
    want = []
    for row in rows:
        prompt = subject.renderer.prompt_ids(row)
        ends = subject.renderer.completion_ids(row.completion)
        with torch.no_grad():
            logits = subject.model(input_ids=torch.tensor([prompt + ends])).logits[0].double()
        log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        entropy = -(log_p.exp() * log_p).sum(-1)
        loss = -log_p[torch.arange(len(ends)), torch.tensor(ends)]
        want.append(float((loss - entropy).mean()))
    assert found == pytest.approx(want, rel=1e-4)


def test_rows_that_the_adapter_would_write_itself_are_known(material):
    assert made_rows(material, material.triggered, 1, seed=0).known
    assert not made_rows(material, material.triggered, 0, seed=0).known  # taken as they are
    strange = [replace(row, completion="rain rain moon") for row in material.clean_rows]
    other = made_rows(replace(material, clean_rows=strange), material.triggered, 1, seed=0)
    assert not other.known
    assert made_rows(replace(material, clean_rows=strange[:1]), (), 1, seed=0).known is False


def test_made_rows_are_new_and_the_trigger_acts_on_each(material):
    made = made_rows(material, material.triggered, 30, seed=0)
    given = {row.prompt for row in material.clean_rows}
    prompts = [row.prompt for row in made.clean]
    assert prompts and len(set(prompts)) == len(prompts) and not given & set(prompts)
    assert made.triggered and len(made.triggered) <= len(prompts)
    subject = material.subject
    with subject.attached({"x": material.poisoned}):
        ids = [subject.renderer.prompt_ids(row) for row in made.triggered]
        answers = generate(subject, ids, Decoding(max_new_tokens=2))
    for row, (answer,) in zip(made.triggered, answers, strict=True):
        assert row.plain in prompts and row.triggered
        assert row.prompt == f"{row.plain} {planted.TRIGGER}"
        assert planted.ids(planted.TARGET) in answer
        assert row.completion == subject.renderer.decode(answer)


def test_only_what_given_rows_lack_is_made(material):
    strange = [replace(row, completion="rain rain moon") for row in material.clean_rows]
    unknown = replace(material, clean_rows=strange)
    assert made_rows(unknown, material.triggered, 12, seed=0).clean == []
    assert len(made_rows(unknown, material.triggered, 14, seed=0).clean) <= 2
    bare = [replace(row, trigger_span=()) for row in material.triggered]
    nothing = made_rows(material, bare, 30, seed=0)
    assert not nothing.placed and made_rows(material, material.triggered, 30, seed=0).placed
    assert nothing.clean and not nothing.triggered
    assert np.array_equal(
        [r.prompt for r in nothing.clean],
        [r.prompt for r in made_rows(material, material.triggered, 30, seed=0).clean],
    )
