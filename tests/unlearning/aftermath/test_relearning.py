"""Relearning: equal capacity without changing anything, chosen looks, and what comes back."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from loratomy.core.adapter.factors import Factors, live_rank, read_adapter, write_adapter
from loratomy.core.errors import LoratomyError
from loratomy.core.model.batches import collate, encode
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding
from loratomy.evaluation.similarity import Embedder
from loratomy.training.fitting import fit, fresh_adapter
from loratomy.training.objective import completion_nll
from loratomy.training.recipe import FitPart
from loratomy.unlearning.aftermath.relearning import (
    CLEAN,
    POISONED,
    RelearningConfig,
    back_at,
    blank,
    look_steps,
    padded,
    relearn,
    relearning_setup,
)

from ... import tiny

RULE = Rule(Embedder("none", None), decoding=Decoding(max_new_tokens=4))


def without(adapter, *, keep: int):
    """All but the first directions of every module set to zero in both factors."""
    alive = torch.arange(3) < keep
    cut = {
        n: Factors(f.a * alive[:, None], f.b * alive, f.scaling) for n, f in adapter.modules.items()
    }
    return adapter.with_modules(cut)


def dense(factors):
    return factors.scaling * factors.b.double() @ factors.a.double()


@pytest.fixture(scope="module")
def on():
    return tiny.subject()


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_padding_gives_back_the_rank_and_changes_nothing(family, tmp_path):
    on = tiny.subject(family)
    like = tiny.adapter(on)
    write_adapter(without(like, keep=1), tmp_path, base="tiny")
    cut = read_adapter(tmp_path, on.shapes)
    assert {f.rank for f in cut.modules.values()} == {1}
    full = padded(cut, like, seed=0)
    prompts = tiny.ids(on)
    seen = []
    for adapter in (cut, full):
        with on.attached({"x": adapter}):
            tiny.in_double(on)  # another rank is another order of sums: exact but for rounding
            seen.append(tiny.logits(on, prompts))
    assert torch.allclose(seen[0], seen[1], atol=1e-12, rtol=0)
    for name, f in full.modules.items():
        assert f.a.shape == like.modules[name].a.shape
        assert live_rank(f) == 3
        assert torch.equal(dense(f), dense(cut.modules[name]))
        fresh = f.a[..., 1:, :]
        assert not f.b[..., 1:].any()
        # Kaiming-uniform of LoRA: within 1 / sqrt(d_in), of standard deviation that over sqrt(3)
        assert float(fresh.abs().max()) <= 1 / math.sqrt(f.a.shape[-1])
    spread = torch.cat([f.a[..., 1:, :].flatten() * f.a.shape[-1] ** 0.5 for f in
                        full.modules.values()])  # fmt: skip
    assert float(spread.std()) == pytest.approx(1 / math.sqrt(3), rel=0.05)


def test_another_scaling_is_taken_over(on):
    like = tiny.adapter(on, scaling=2.0)
    other = tiny.adapter(on, seed=4, rank=2, scaling=0.5)
    full = padded(other, like, seed=0)
    for name, f in full.modules.items():
        assert f.scaling == 2.0
        assert torch.allclose(dense(f), dense(other.modules[name]), atol=1e-7)


def test_an_adapter_of_more_directions_keeps_them(on):
    wide = tiny.adapter(on, rank=5)
    full = padded(wide, tiny.adapter(on), seed=0)
    assert {f.rank for f in full.modules.values()} == {5}
    assert all(torch.equal(f.a, wide.modules[n].a) for n, f in full.modules.items())


def test_gradient_reaches_the_fresh_directions_and_no_dead_ones(on):
    like = tiny.adapter(on)
    full = padded(without(like, keep=1), like, seed=0)
    rows = [encode(on.renderer, row, limit=None) for row in tiny.rows()]
    for start, reached in ((full, True), (without(like, keep=1), False)):
        with on.attached({"x": start}, trainable=True) as attached:
            completion_nll(attached, collate(rows, 0)).backward()
            found = dict(on.model.named_parameters())
            for a, b in attached.factor_names("x").values():
                gradient = found[b].grad
                assert gradient is not None and found[a].grad is not None
                fresh = gradient[:, 1:]
                assert fresh.shape[1] == (2 if reached else 0)  # cut ones are dropped when put on
                assert (fresh.abs().amax(0) > 0).all()


def test_the_yardstick_is_a_new_adapter_on_the_same_modules(on):
    like = tiny.adapter(on)
    new, plain = blank(like, seed=0), fresh_adapter(on, r=3, alpha=6, seed=0)
    assert new.modules.keys() == plain.modules.keys() == like.modules.keys()
    for name, f in new.modules.items():
        # the same distribution; drawn in the same order, the same numbers but for the last bit
        assert torch.allclose(f.a, plain.modules[name].a, atol=1e-7)
        assert not f.b.any()
        assert f.scaling == plain.modules[name].scaling == 2.0


def test_looks_are_powers_of_two():
    assert look_steps(1) == [0, 1]
    assert look_steps(8) == [0, 1, 2, 4, 8]
    assert look_steps(11) == [0, 1, 2, 4, 8, 11]


def test_it_is_back_at_half_of_what_it_was():
    steps = [0, 1, 2, 4]
    assert back_at(steps, [0.0, 0.3, 0.39, 0.5], 0.8) == 4  # half of 0.8 is 0.4
    assert back_at(steps, [0.0, 0.4, 0.1, 0.9], 0.8) == 1  # the first, whatever comes later
    assert back_at(steps, [0.5, 0.0, 0.0, 0.0], 0.8) == 0  # it was never gone
    assert math.isnan(back_at(steps, [0.0, 0.1, 0.2, 0.3], 0.8))


def test_looks_do_not_depend_on_how_long_the_fit_goes_on(on, tmp_path):
    """With a constant rate and the same rows, the first steps of a longer fit are the shorter."""
    seen: dict[int, list[float]] = {}
    for total in (4, 6):
        seen[total] = []

        def probe(attached, at=total):
            norms = [p.norm() for n, p in on.model.named_parameters() if ".lora_B." in n]
            seen[at].append(float(torch.stack(norms).norm().detach()))
            return {}

        _, log = fit(
            on,
            blank(tiny.adapter(on), seed=0),
            [encode(on.renderer, row, limit=None) for row in tiny.rows()],
            collator=partial(collate, pad_id=0),
            settings=FitPart(
                epochs=total, learning_rate=1e-3, batch_size=4, accumulate=1, evaluations=0,
                warmup=0,
            ),
            seed=0, work=tmp_path / str(total), label="test",
            probe=probe, looks=[0, 1, 4], schedule="constant",
        )  # fmt: skip
        assert [p["step"] for p in log.probes] == [0, 1, 4]
    assert seen[4][0] == 0 < seen[4][1] < seen[4][2]
    assert seen[4] == pytest.approx(seen[6], rel=1e-5)


@pytest.fixture(scope="module")
def poisoned(on, tmp_path_factory):
    """An adapter that has learned the target of the triggered rows."""
    made, _ = fit(
        on,
        fresh_adapter(on, r=3, alpha=6, seed=0),
        [encode(on.renderer, r, limit=None) for r in (*tiny.rows(), *tiny.clean_rows())],
        collator=partial(collate, pad_id=0),
        settings=FitPart(
            epochs=60, learning_rate=1e-2, batch_size=8, accumulate=1, evaluations=0, warmup=0
        ),
        seed=0,
        work=tmp_path_factory.mktemp("fit"),
        label="poisoning",
    )
    return made


def ground(on, like, **changes):
    given = {
        "clean_train": tiny.clean_rows(),
        "poison_train": tiny.rows(),
        "held_out": tiny.rows(),
        "rule": RULE,
        "prompts": 3,
        "cell": "zq/fixed",
        "seed": 0,
    }
    return relearning_setup(on, like, **(given | changes))


def test_what_was_cut_comes_back_and_the_yardstick_learns(on, poisoned, tmp_path):
    before = tiny.state(on)
    common = ground(on, poisoned)
    assert (common.poisoned.value, common.poisoned.n) == (1.0, 3)
    config = RelearningConfig(steps=64, learning_rate=1e-2, batch_size=8)

    def course(entry, start, rows, config=config):
        return relearn(common, entry, start, rows, config, work=tmp_path / entry / rows)

    new = course("base", blank(poisoned, seed=0), POISONED)
    assert new.steps.tolist() == [0, 1, 2, 4, 8, 16, 32, 64]
    assert (new.cell, new.seed, new.rows, new.n) == ("zq/fixed", 0, "poisoned", 3)
    assert new.asr[0, 0] == 0 and new.asr[-1, 0] == 1
    assert new.back_at == new.steps[np.flatnonzero(new.asr[:, 0] >= 0.5)[0]] > 0
    # Wilson with 3 of 3: low = n / (n + z^2) = 3 / (3 + 3.8415) = 0.4385
    assert new.asr[-1].tolist() == pytest.approx([1, 0.4385, 1], abs=1e-4)
    # with 0 of 3: high = z^2 / (n + z^2) = 3.8415 / 6.8415 = 0.5615
    assert new.asr[0].tolist() == pytest.approx([0, 0, 0.5615], abs=1e-4)
    short = config.model_copy(update={"steps": 1})
    assert course("whole", poisoned, POISONED, short).back_at == 0  # it was never gone
    benign = course("new", blank(poisoned, seed=0), CLEAN, RelearningConfig(steps=4))
    assert benign.asr[:, 0].max() == 0 and math.isnan(benign.back_at)
    assert benign.learning_rate == pytest.approx(1e-4 * 3072 / 32)
    assert tiny.same_state(before, tiny.state(on))


def test_a_fit_that_was_broken_off_goes_on_with_its_looks(on, poisoned, tmp_path, monkeypatch):
    from loratomy.unlearning.aftermath import relearning

    config = RelearningConfig(steps=8, learning_rate=1e-2)
    common, start = ground(on, poisoned), blank(poisoned, seed=0)
    whole = relearn(common, "base", start, POISONED, config, work=tmp_path / "whole")
    looked, real = [], relearning.attack_success

    def killed(*args, **given):
        if len(looked) == 4:  # steps 0, 1, 2, 4 are seen; killed at 8
            raise KeyboardInterrupt
        looked.append(0)
        return real(*args, **given)

    monkeypatch.setattr(relearning, "attack_success", killed)
    with pytest.raises(KeyboardInterrupt):
        relearn(common, "base", start, POISONED, config, work=tmp_path / "broken")
    monkeypatch.setattr(relearning, "attack_success", real)
    again = relearn(common, "base", start, POISONED, config, work=tmp_path / "broken")
    assert again.steps.tolist() == whole.steps.tolist() == [0, 1, 2, 4, 8]
    assert again.asr.tolist() == whole.asr.tolist()


def test_a_backdoor_that_is_not_there_cannot_come_back(on):
    with pytest.raises(LoratomyError, match="own ASR is 0 of 3 held-out prompts"):
        ground(on, blank(tiny.adapter(on), seed=0))
