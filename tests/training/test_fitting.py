"""The fitting loop: what accumulates, what resumes, what stops, what is left as it was."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from loratomy.core.adapter.factors import Adapter
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.batches import collate, encode
from loratomy.core.model.loading import load_subject
from loratomy.training.fitting import FitLog, fit, fresh_adapter
from loratomy.training.loop import LAST_GOOD, TRAINED, steps_of
from loratomy.training.objective import Objective, completion_nll, completion_tokens
from loratomy.training.recipe import FitPart
from loratomy.training.wren import wren_path
from loratomy.unlearning.trained.distill import DistillRow, distill_batch
from loratomy.unlearning.trained.repair import TEACHER, repair_objective

from .. import tiny

NLL = Objective(
    lambda attached, batch: completion_nll(attached, batch)[None],
    lambda batch: completion_tokens(batch)[None],
)


class Killed(Exception):
    """What comes in the middle of a step."""


@pytest.fixture
def on():
    return tiny.subject()


def rows_of(on, count: int = 11):
    """Rows of six lengths; 11 are no multiple of any batch."""
    rows = [*tiny.rows(), *tiny.clean_rows()] * 2
    return [encode(on.renderer, row, limit=None) for row in rows[:count]]


def fitted(on, work: Path, *, rows=None, start=None, **given) -> tuple[Adapter, FitLog]:
    work.mkdir(exist_ok=True)
    names = set(FitPart.model_fields)
    settings = {"epochs": 3, "learning_rate": 1e-2, "batch_size": 8, "accumulate": 1}
    settings |= {"evaluations": 0} | {k: v for k, v in given.items() if k in names}
    return fit(
        on,
        tiny.adapter(on) if start is None else start,
        rows_of(on) if rows is None else rows,
        settings=FitPart(**settings),
        work=work,
        **{
            "seed": 0,
            "label": "test",
            "collator": partial(collate, pad_id=0),
            **{k: v for k, v in given.items() if k not in names},
        },
    )


def apart(one: Adapter, other: Adapter) -> float:
    """The largest difference of any entry of any factor."""
    pairs = zip(one.modules.values(), other.modules.values(), strict=True)
    return max(float((x - y).abs().max()) for f, g in pairs for x, y in ((f.a, g.a), (f.b, g.b)))


def interrupted(objective: Objective, call: int) -> Objective:
    """The objective, killed at its n-th micro-batch, from 1."""
    calls = []

    def sums(attached, batch):
        calls.append(0)
        if len(calls) == call:
            raise Killed
        return objective.sums(attached, batch)

    return Objective(sums, objective.counts, objective.weights)


def test_a_fresh_adapter_changes_nothing():
    subject = load_subject("wren", path=wren_path())
    adapter = fresh_adapter(subject, r=4, alpha=8, seed=0)
    assert len(adapter.modules) == 42  # 6 layers x 7 linear modules
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = subject.model(ids).logits
        with subject.attached({"x": adapter}):
            assert torch.equal(subject.model(ids).logits, before)


def test_one_step_is_adam_on_the_mean_loss_per_completion_token(on, tmp_path):
    rows, start, rate = rows_of(on, 7), tiny.adapter(on), 1e-3
    # Adam's first step is m / (sqrt(v) + eps) = g / (|g| + 1e-8), at the full rate: no warm-up.
    made, log = fitted(
        on, tmp_path, rows=rows, batch_size=7, epochs=1, warmup=0, learning_rate=rate
    )
    model = tiny.plain_peft("llama", start, tmp_path / "plain")
    model.train()
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    batch = collate(rows, 0)
    loss = model(**batch).loss  # transformers' own mean over labelled tokens
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.requires_grad]).norm()
    assert float(log.loss[0]) == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        module, part = name.removeprefix("base_model.model.").split(".lora_")
        g = p.grad * min(1.0, 1 / float(norm))  # clipped at a norm of 1
        want = p.detach() - rate * g / (g.abs() + 1e-8)
        got = getattr(made.modules[module], part[0].lower())
        clear = g.abs() > 1e-5  # elsewhere eps and rounding decide
        assert torch.allclose(got[clear], want[clear], atol=1e-6)
        assert clear.float().mean() > 0.5


@pytest.mark.parametrize("split", [(4, 2), (2, 4), (1, 8)])
def test_accumulated_small_batches_are_one_large_batch(on, tmp_path, split):
    tiny.in_double(on)  # so that rounding does not decide the sign of gradients near 0
    size, times = split
    whole, log = fitted(on, tmp_path / "a", batch_size=8)
    parts, accumulated = fitted(on, tmp_path / "b", batch_size=size, accumulate=times)
    assert steps_of(11, FitPart(epochs=3, batch_size=8, accumulate=1)) == len(log.steps) == 6
    assert accumulated.loss == pytest.approx(log.loss, rel=1e-6)
    assert apart(whole, parts) < 1e-6
    assert apart(whole, tiny.adapter(on)) > 1e-2


@pytest.mark.parametrize("splits", [True, False])
def test_a_batch_in_parts_of_like_length_is_one_batch(on, tmp_path, monkeypatch, splits):
    tiny.in_double(on)
    whole, log = fitted(on, tmp_path / "a", batch_size=8)
    monkeypatch.setattr("loratomy.training.loop.PART_TOKENS", 1)  # a row has more: one by one
    passes = []
    objective = replace(
        NLL,
        sums=lambda *given: passes.append(len(given[1]["labels"])) or NLL.sums(*given),
        splits=splits,
    )
    parts, again = fitted(on, tmp_path / "b", batch_size=8, objective=objective)
    assert passes == ([1] * 48 if splits else [8] * 6)  # 6 steps of 8 rows
    assert again.loss == pytest.approx(log.loss, rel=1e-6)
    assert apart(whole, parts) < 1e-6


def test_accumulation_in_single_precision(on, tmp_path):
    whole, _ = fitted(on, tmp_path / "a", batch_size=8, learning_rate=1e-3)
    parts, _ = fitted(on, tmp_path / "b", batch_size=2, accumulate=4, learning_rate=1e-3)
    moved = apart(whole, tiny.adapter(on))
    assert moved > 1e-3
    assert apart(whole, parts) < 1e-2 * moved


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [
        (11, {"batch_size": 8, "accumulate": 1, "epochs": 3}, 6),  # ceil(11/8) = 2 a pass
        (16, {"batch_size": 4, "accumulate": 2, "epochs": 2.5}, 5),  # 16/8 = 2, 2 x 2.5
        (3, {"batch_size": 8, "accumulate": 1, "epochs": 0.2}, 1),  # at least one
    ],
)
def test_steps_by_hand(rows, settings, steps):
    assert steps_of(rows, FitPart(**settings)) == steps


def test_a_fit_killed_at_any_step_goes_on_to_the_same_result(on, tmp_path):
    given = {"dropout": 0.3, "epochs": 4}  # 8 steps; dropout shows whether randomness goes on too
    unbroken, log = fitted(on, tmp_path / "whole", **given)
    for step in range(1, 9):
        work = tmp_path / str(step)
        with pytest.raises(Killed):
            fitted(on, work, objective=interrupted(NLL, step), **given)
        assert len(list(work.glob("checkpoint-*/whole.json"))) == min(2, (step - 1) // 2)
        resumed, again = fitted(on, work, **given)
        assert apart(unbroken, resumed) < 1e-6, step
        assert again.loss == pytest.approx(log.loss, rel=1e-5)
    same, _ = fitted(on, tmp_path / "whole", **given)  # killed after the last step
    assert apart(unbroken, same) == 0


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_fit_beside_a_frozen_teacher_goes_on_too(tmp_path, family):
    on = tiny.subject(family)
    teacher = tiny.adapter(on, seed=7)
    given = {
        "rows": [DistillRow(row, row) for row in rows_of(on)],
        "collator": partial(distill_batch, pad_id=0),
        "others": {TEACHER: teacher},
        "batch_size": 4,
        "accumulate": 2,
    }
    objective = repair_objective()
    unbroken, log = fitted(on, tmp_path / "whole", objective=objective, **given)
    with pytest.raises(Killed):
        fitted(on, tmp_path / "cut", objective=interrupted(objective, 8), **given)
    resumed, _ = fitted(on, tmp_path / "cut", objective=objective, **given)
    assert apart(unbroken, resumed) < 1e-6
    assert log.loss[-1] < log.loss[0]


def test_a_checkpoint_that_was_not_written_whole_is_not_read(on, tmp_path):
    unbroken, _ = fitted(on, tmp_path / "whole")
    work = tmp_path / "cut"
    with pytest.raises(Killed):
        fitted(on, work, objective=interrupted(NLL, 4))
    newest = work / "checkpoint-3"
    (newest / "whole.json").unlink()
    (newest / "adapter_model.safetensors").write_bytes(b"half")
    assert apart(unbroken, fitted(on, work)[0]) < 1e-6


SCRIPT = """
import os, signal, sys
from functools import partial
from pathlib import Path
from loratomy.core.batches import collate
from loratomy.training.objective import Objective
from tests import tiny
from tests.training import test_fitting as here

calls = []
def sums(attached, batch):
    calls.append(0)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return here.NLL.sums(attached, batch)

here.fitted(tiny.subject(), Path(sys.argv[1]), objective=Objective(sums, here.NLL.counts))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_another_goes_on_from(on, tmp_path):
    unbroken, _ = fitted(on, tmp_path / "whole")
    root = Path(__file__).parent.parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "cut")], cwd=root, timeout=300, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "cut/checkpoint-3/whole.json").exists()
    assert apart(unbroken, fitted(on, tmp_path / "cut")[0]) < 1e-6


def test_the_time_of_a_stopped_fit_counts(on, tmp_path):
    def slow(attached, batch):
        time.sleep(0.1)
        return NLL.sums(attached, batch)

    objective = Objective(slow, NLL.counts)
    whole, log = fitted(on, tmp_path / "whole", objective=objective)
    assert log.earlier_seconds == 0
    with pytest.raises(Killed):  # two steps were whole, of 0.1 s each at least
        fitted(on, tmp_path / "cut", objective=interrupted(objective, 3))
    resumed, again = fitted(on, tmp_path / "cut", objective=objective)
    assert apart(whole, resumed) < 1e-6
    assert 0.2 <= again.earlier_seconds < 60


@pytest.mark.parametrize(("accumulate", "step", "good"), [(1, 4, 2), (2, 2, 1)])
def test_a_loss_that_is_no_number_stops_and_leaves_the_last_good_state(
    on, tmp_path, accumulate, step, good
):
    """Good is what a whole step had finite losses with, not one micro-batch of it."""
    seen = []

    def sums(attached, batch):
        factor = 1.0 if len(seen) < 3 else float("nan")
        seen.append(attached.read_back(TRAINED))
        return NLL.sums(attached, batch) * factor

    objective = Objective(sums, NLL.counts)
    with pytest.raises(LoratomyError, match=rf"test: the loss became nan at step {step} at .* 0"):
        fitted(on, tmp_path, objective=objective, accumulate=accumulate)
    kept = tmp_path / LAST_GOOD
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny.model("llama"), kept)
    stored = dict(model.named_parameters())
    for name, factors in seen[good].modules.items():
        a = stored[f"base_model.model.{name}.lora_A.default.weight"]
        b = stored[f"base_model.model.{name}.lora_B.default.weight"]
        assert torch.equal(a, factors.a) and torch.equal(b, factors.b)


def test_a_gradient_that_is_no_number_never_reaches_the_weights(on, tmp_path):
    def sums(attached, batch):
        weight = next(p for p in attached.peft_model.parameters() if p.requires_grad)
        return NLL.sums(attached, batch) + (weight.sum() * 0).abs().sqrt()  # 0, slope inf * 0

    with pytest.raises(LoratomyError, match="the gradient became nan at step 1"):
        fitted(on, tmp_path, objective=Objective(sums, NLL.counts))
    assert not list(tmp_path.glob("checkpoint-*"))
    assert (tmp_path / LAST_GOOD / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_a_fit_leaves_everything_as_it_was(on, tmp_path, killed):
    state, marks = tiny.state(on), tiny.marks(on)
    config, generation = on.model.config.to_dict(), on.model.generation_config.to_dict()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    objective = interrupted(NLL, 3) if killed else NLL
    try:
        adapter, log = fitted(on, tmp_path, objective=objective, epochs=8)
        assert log.loss[-1] < log.loss[0]
        assert apart(adapter, tiny.adapter(on)) > 1e-2
    except Killed:
        assert killed
    drawn = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1))
    assert tiny.same_state(state, tiny.state(on))
    assert tiny.marks(on) == marks
    assert on.model.config.to_dict() == config
    assert on.model.generation_config.to_dict() == generation


def test_the_last_checkpoint_is_the_adapter_as_plain_peft(on, tmp_path):
    teacher = {"others": {TEACHER: tiny.adapter(on, seed=7)}}
    made, _ = fitted(on, tmp_path, **teacher)
    last = max(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    from peft import PeftModel

    prompts = tiny.ids(on)
    plain = PeftModel.from_pretrained(tiny.model("llama"), last).eval()
    with torch.no_grad(), on.attached({"made": made}):
        want = on.model(input_ids=prompts).logits
        assert torch.allclose(plain(input_ids=prompts).logits, want, atol=1e-5)
    assert not (last / TEACHER).exists()


def test_no_rows_are_an_error(on, tmp_path):
    with pytest.raises(DataError, match="no rows to fit on"):
        fitted(on, tmp_path, rows=[])
