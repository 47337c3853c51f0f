"""The fitting loop: what accumulates, what resumes, what is learned."""

from functools import partial

import pytest
import torch
from loratomy.core.batches import collate, encode
from loratomy.core.errors import LoratomyError
from loratomy.core.subject import load_subject
from loratomy.training.fitting import fit, fresh_adapter
from loratomy.training.objective import Objective, completion_nll, completion_tokens
from loratomy.training.recipe import FitPart
from loratomy.training.world import finetune_rows
from loratomy.training.wren import wren_path


@pytest.fixture(scope="module")
def subject():
    return load_subject("wren", path=wren_path())


def fitted(subject, work, **settings):
    rows = [encode(subject.renderer, r, limit=None) for r in finetune_rows(32, seed=1)]
    same = [row for row in rows if len(row.completion) == len(rows[0].completion)][:8]
    defaults = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "accumulate": 1}
    work.mkdir()
    return fit(
        subject,
        fresh_adapter(subject, r=2, alpha=4, seed=0),
        same * (8 // len(same) + 1),
        collator=partial(collate, pad_id=subject.renderer.pad_id),
        settings=FitPart(**(defaults | {"evaluations": 0, "eval_rows": 1} | settings)),
        seed=0,
        work=work,
        label="test",
    )


def test_a_fresh_adapter_changes_nothing(subject):
    adapter = fresh_adapter(subject, r=4, alpha=8, seed=0)
    assert len(adapter.modules) == 42  # 6 layers x 7 linear modules
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = subject.model(ids).logits
        with subject.attached({"x": adapter}):
            assert torch.equal(subject.model(ids).logits, before)


def test_accumulated_small_batches_are_one_large_batch(subject, tmp_path):
    one, log = fitted(subject, tmp_path / "a")
    four, accumulated = fitted(subject, tmp_path / "b", batch_size=2, accumulate=4)
    assert accumulated.loss == pytest.approx(log.loss, rel=1e-3)
    for name, f in one.modules.items():
        assert torch.allclose(f.dense(), four.modules[name].dense(), atol=1e-4)


def test_the_loss_falls_and_the_base_is_left_alone(subject, tmp_path):
    before = {n: p.clone() for n, p in subject.model.named_parameters()}
    _, log = fitted(subject, tmp_path / "a", epochs=8, learning_rate=5e-3)
    assert log.loss[-1] < log.loss[0]
    after = dict(subject.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[n]) for n, v in before.items())


def test_a_loss_that_is_no_number_is_an_error(subject, tmp_path):
    (tmp_path / "a").mkdir()
    rows = [encode(subject.renderer, r, limit=None) for r in finetune_rows(4, seed=1)]
    with pytest.raises(LoratomyError, match="nan at step 1 at the learning rate"):
        fit(
            subject,
            fresh_adapter(subject, r=2, alpha=4, seed=0),
            rows,
            collator=partial(collate, pad_id=subject.renderer.pad_id),
            settings=FitPart(epochs=1, batch_size=4, accumulate=1, evaluations=0, eval_rows=1),
            seed=0,
            work=tmp_path / "a",
            label="test",
            objective=Objective(
                lambda attached, batch: completion_nll(attached, batch)[None] * float("nan"),
                lambda batch: completion_tokens(batch)[None],
            ),
        )
