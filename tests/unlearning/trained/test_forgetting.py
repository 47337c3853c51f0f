"""Ascent, NPO and plain fine-tuning: losses by hand, their limits, and equal budgets."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loratomy.analysis.material import Material
from loratomy.core.adapter.factors import Adapter
from loratomy.core.errors import DataError
from loratomy.core.model.batches import Encoded, collate, encode
from loratomy.core.records.results import FitUsed
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.similarity import Embedder
from loratomy.training.fitting import fit
from loratomy.training.loop import steps_of
from loratomy.training.recipe import FitPart
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.trained.ascent import AscentConfig, ascent_objective
from loratomy.unlearning.trained.finetune import control_options, equal_budget, same_steps
from loratomy.unlearning.trained.forgetting import Item, item_batch, items_of
from loratomy.unlearning.trained.npo import NpoConfig, npo_objective, with_reference

from ... import tiny

FIT = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2}


def says(logits: torch.Tensor):
    """A model of three tokens that gives every next token the same logits."""
    model = tiny.Saying(lambda ids: logits.expand(*ids.shape, 3))
    return SimpleNamespace(subject=SimpleNamespace(model=model))


BATCH = [
    Item(Encoded([0], [1, 2]), forgotten=True, reference=math.log(0.5)),
    Item(Encoded([0, 0], [1]), forgotten=True, reference=math.log(0.25)),
    Item(Encoded([0], [2, 2, 1]), forgotten=False),
]
"""Completions under p(1) = 1/4, p(2) = 1/8: 1/32, 1/4 and 1/256."""


def loss_of(objective, items=BATCH):
    batch = item_batch(items, pad_id=0)
    attached = says(torch.tensor([0.625, 0.25, 0.125]).log())
    counts = objective.counts(batch)
    loss = float(objective.loss(attached, batch, counts))
    return objective.sums(attached, batch).tolist(), counts.tolist(), loss


def test_ascent_by_hand():
    sums, counts, loss = loss_of(ascent_objective(AscentConfig(forget=2.0, retain=0.5)))
    # forget: log 32 + log 4 = log 128 over 3 tokens; retain: log 256 over 3 tokens
    assert sums == pytest.approx([math.log(128), math.log(256)], rel=1e-6)
    assert counts == [3, 3]
    # -2 x log 128 / 3 + 0.5 x log 256 / 3 = -2 x 1.617343 + 0.5 x 1.848392 = -2.310491
    assert loss == pytest.approx(-2.310491, abs=1e-5)


def test_a_bound_stops_the_push_on_tokens_beyond_it():
    # tokens to forget lose log 4, log 8 and log 4; bound at log 5: log 4 + log 5 + log 4 = log 80
    sums, _, _ = loss_of(ascent_objective(AscentConfig(bound=math.log(5))))
    assert sums[0] == pytest.approx(math.log(80), rel=1e-6)
    logits = torch.zeros(3, requires_grad=True)
    attached = says(logits)
    batch = item_batch(BATCH[:2], pad_id=0)  # every token at log 3
    for bound, moves in ((1.0, False), (1.2, True)):  # log 3 = 1.0986
        objective = ascent_objective(AscentConfig(bound=bound))
        loss = objective.loss(attached, batch, objective.counts(batch))
        (grad,) = torch.autograd.grad(loss, logits)
        assert bool(grad.any()) == moves


def test_npo_by_hand():
    beta = 0.5
    sums, counts, loss = loss_of(npo_objective(NpoConfig(beta=beta, retain=3.0)))
    # ratios p/p_ref: (1/32)/(1/2) = 1/16 and (1/4)/(1/4) = 1
    # sigmoid(-0.5 log r) = 1 / (1 + sqrt(r)): 1/(1 + 1/4) = 0.8 and 1/2
    # -(2/0.5) (log 0.8 + log 0.5) = -4 log 0.4 = 3.665163, over 2 rows
    assert sums[0] == pytest.approx(-4 * math.log(0.4), rel=1e-6)
    assert counts == [2, 3]
    assert loss == pytest.approx(-2 * math.log(0.4) + 3 * math.log(256) / 3, rel=1e-6)


def test_a_term_that_counts_nothing_is_left_out():
    for objective in (ascent_objective(AscentConfig()), npo_objective(NpoConfig())):
        for items in (BATCH[:2], BATCH[2:]):
            sums, counts, loss = loss_of(objective, items)
            k = 0 if items[0].forgotten else 1
            assert counts[1 - k] == 0 and sums[1 - k] == 0
            assert loss == pytest.approx(objective.weights[k] * sums[k] / counts[k], rel=1e-6)


@pytest.fixture
def on():
    return tiny.subject()


@pytest.fixture
def bench(on, tmp_path):
    adapter = tiny.adapter(on)
    return Material(
        subject=on,
        poisoned=adapter,
        clean=None,
        clean_rows=[*tiny.clean_rows(), *tiny.clean_rows()],
        triggered=tiny.rows(),
        negative=tiny.rows(),
        make_rule=lambda: Rule(Embedder("none", None)),
        seed=0,
        work=tmp_path,
    )


def gradient(on, adapter, objective, items) -> torch.Tensor:
    with on.attached({"default": adapter}, trainable=True) as attached:
        batch = item_batch(items, pad_id=0)
        objective.loss(attached, batch, objective.counts(batch)).backward()
        grads = [p.grad for p in on.model.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in grads])


def test_npo_becomes_ascent_as_beta_goes_to_0(on, bench):
    """Proposition 1 of arXiv 2404.05868: the limit is ascent on the rows' log-probability."""
    moved = tiny.adapter(on, seed=3)  # away from the reference, where every beta is alike
    items = [i for i in items_of(bench, AscentConfig()) if i.forgotten]
    items = with_reference(on, bench.start, items, 4)
    ascent = gradient(on, moved, ascent_objective(AscentConfig()), items)
    # ascent's mean is over tokens, NPO's over rows: 4 rows of 4 target tokens each
    ascent *= sum(len(i.row.completion) for i in items) / len(items)

    def off(beta: float) -> float:
        npo = gradient(on, moved, npo_objective(NpoConfig(beta=beta)), items)
        return float((npo - ascent).norm() / ascent.norm())

    assert off(1e-5) < 1e-3
    assert off(0.5) > 10 * off(1e-2) > 100 * off(1e-5)


def test_the_reference_is_the_probability_under_plain_peft(on, bench, tmp_path):
    items = with_reference(on, bench.start, items_of(bench, NpoConfig()), batch_size=3)
    model = tiny.plain_peft("llama", bench.start, tmp_path / "plain")
    for item in items:
        if not item.forgotten:
            assert item.reference == 0
            continue
        ids = torch.tensor([item.row.prompt + item.row.completion])
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0].log_softmax(-1)
        at = range(len(item.row.prompt), ids.shape[1])
        want = sum(float(logs[i - 1, ids[0, i]]) for i in at)
        assert item.reference == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    "objective", [ascent_objective(AscentConfig()), npo_objective(NpoConfig())]
)
def test_terms_accumulate_as_one_batch(on, bench, tmp_path, objective):
    tiny.in_double(on)
    items = items_of(bench, AscentConfig())
    made = {}
    for size, times in ((8, 1), (2, 4)):
        (tmp_path / str(size)).mkdir()
        made[size], _ = fit(
            on,
            bench.start,
            items,
            collator=partial(item_batch, pad_id=0),
            settings=FitPart(
                epochs=2, learning_rate=1e-2, batch_size=size, accumulate=times, evaluations=0
            ),
            seed=0,
            work=tmp_path / str(size),
            label="test",
            objective=objective,
        )
    assert apart(made[8], made[2]) < 1e-6
    assert apart(made[8], bench.start) > 1e-3


def apart(one: Adapter, other: Adapter) -> float:
    pairs = zip(one.modules.values(), other.modules.values(), strict=True)
    return max(float((x - y).abs().max()) for f, g in pairs for x, y in ((f.a, g.a), (f.b, g.b)))


def mean_loss(bench: Material, adapter: Adapter, rows) -> float:
    subject = bench.subject
    encoded = [encode(subject.renderer, row, limit=None) for row in rows]
    with torch.no_grad(), subject.attached({"x": adapter}):
        return float(subject.model(**collate(encoded, 0)).loss)


@pytest.mark.parametrize("name", ["ascent", "npo"])
def test_targets_become_less_likely_and_clean_answers_do_not(bench, name):
    config = METHODS[name].config(**FIT | {"epochs": 10, "retain": 2.0})
    state, record = operate(name, bench, config)
    triggered, clean = bench.triggered, bench.clean_rows
    assert mean_loss(bench, state.adapter, triggered) > mean_loss(bench, bench.start, triggered) + 1
    assert mean_loss(bench, state.adapter, clean) < mean_loss(bench, bench.start, clean)
    assert "4 triggered rows, 6 clean rows retained" in record.summary
    assert record.fit.rows == 10


def test_rows_without_a_target_cannot_be_forgotten(bench):
    blank = [replace(row, completion=None) for row in bench.triggered]
    with pytest.raises(DataError, match="nothing to forget"):
        items_of(replace(bench, triggered=blank), AscentConfig())


def test_plain_fine_tuning_is_the_fit_on_clean_rows(bench):
    state, record = operate("finetune", bench, METHODS["finetune"].config(clean_rows=3, **FIT))
    before = mean_loss(bench, bench.start, tiny.clean_rows())
    assert mean_loss(bench, state.adapter, tiny.clean_rows()) < before
    # 3 rows fill one batch of 4: 1 step a pass, 2 passes
    assert record.fit == FitUsed(
        rows=3, epochs=2, batch_size=4, accumulate=1, learning_rate=1e-2, warmup=0.1, steps=2
    )


def test_the_control_of_plain_fine_tuning_is_plain_fine_tuning(bench, tmp_path):
    made = {}
    state, record = operate("finetune", bench, METHODS["finetune"].config(clean_rows=5, **FIT))
    made["finetune"] = state.adapter
    options = equal_budget(record)
    assert options is not None
    (tmp_path / "control").mkdir()
    apiece = replace(bench, work=tmp_path / "control")
    config = METHODS["control-finetune"].config(**options)
    state, control = operate("control-finetune", apiece, config)
    assert apart(state.adapter, made["finetune"]) == 0
    assert control.fit == record.fit


def test_a_control_short_of_rows_makes_the_same_steps(bench, tmp_path):
    # 8 negative + 6 clean rows = 14 in steps of 2 x 2: 4 a pass, 3 passes, 12 steps; the control
    # has 6 clean rows, 2 steps a pass, so 6 passes
    shared = {"epochs": 3, "batch_size": 2, "accumulate": 2, "learning_rate": 1e-3}
    twice = replace(bench, negative=[*bench.negative, *bench.negative])
    _, record = operate("negative", twice, METHODS["negative"].config(**shared))
    options = equal_budget(record)
    assert options == {**shared, "rows": 14, "warmup": 0.1}
    (tmp_path / "control").mkdir()
    apiece = replace(bench, work=tmp_path / "control")
    config = METHODS["control-finetune"].config(**options)
    _, control = operate("control-finetune", apiece, config)
    assert control.fit.steps == record.fit.steps == 12 == int(control.loss_step[-1])
    assert (control.fit.rows, control.fit.epochs) == (6, 6)
    assert "on 6 clean rows" in control.summary
    assert "14 rows were asked for" in control.summary


def test_a_method_that_fits_nothing_has_no_budget(bench):
    _, record = operate("truncate", bench, METHODS["truncate"].config(rank=1))
    assert record.fit is None
    assert equal_budget(record) is None


@pytest.mark.parametrize("seed", range(4))
def test_steps_are_equal_for_any_budget(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        size, times, rows = (int(rng.integers(1, high)) for high in (17, 5, 400))
        epochs, there = float(rng.uniform(0.1, 9)), int(rng.integers(1, 400))
        part = FitPart(epochs=epochs, batch_size=size, accumulate=times)
        spent = FitUsed(
            rows=rows,
            epochs=epochs,
            batch_size=size,
            accumulate=times,
            learning_rate=1e-3,
            warmup=0,
            steps=steps_of(rows, part),
        )
        taken, passes = same_steps(spent, there)
        assert taken == min(rows, there)
        assert steps_of(taken, part.model_copy(update={"epochs": passes})) == spent.steps
        assert control_options(spent)["rows"] == rows
