"""CROW against the analysis of consistency, hand arithmetic and a loss written out row by row."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from loratomy.analysis.activations.consistency import turns
from loratomy.analysis.material import Material
from loratomy.core.adapter.factors import uniform
from loratomy.core.errors import LoratomyError
from loratomy.core.model.batches import collate, encode
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding
from loratomy.evaluation.similarity import Embedder
from loratomy.training.fitting import fit
from loratomy.training.objective import completion_nll
from loratomy.training.recipe import FitPart
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.trained.crow import (
    blank,
    compared,
    consistency_objective,
    crow_rate,
    disturbance,
    turn,
)

from ... import tiny

FAMILIES = ["llama", "gemma2", "mixtral"]
LAYERS = range(4)  # of five


def encoded(on):
    return [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]


def batch_of(on, rows):
    return collate(rows, on.renderer.pad_id)


def grads(on):
    return {n: p.grad.clone() for n, p in on.model.named_parameters() if p.grad is not None}


def test_turn_by_hand_without_padding():
    nan = float("nan")
    hidden = [
        torch.tensor([[[1.0, 0.0], [nan, nan]]]),
        torch.tensor([[[0.0, 2.0], [nan, nan]]]),
        torch.tensor([[[3.0, 3.0], [nan, nan]]]),
    ]
    # (1, 0) to (0, 2): 1 - 0; (0, 2) to (3, 3): 1 - 6 / (2 * 3 sqrt 2) = 1 - 0.70711.
    found = turn(hidden, torch.tensor([[1, 0]]))
    assert found.item() == pytest.approx(1 + 1 - 1 / math.sqrt(2))


def test_disturbance_by_hand():
    embeddings = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]], requires_grad=True)
    slope = torch.tensor([[[2.0, -0.1], [0.0, 5.0], [7.0, 7.0]]])
    mask = torch.tensor([[1, 1, 0]])
    # Signs of the slopes times 0.1: (+, -), (0, +), and nothing on padding.
    want = [[[0.1, -0.1], [0.0, 0.1], [0.0, 0.0]]]
    found = disturbance((embeddings * slope).sum(), embeddings, mask, 0.1)
    assert torch.allclose(found, torch.tensor(want))
    assert embeddings.grad is None and not found.requires_grad


@pytest.mark.parametrize("model_type", FAMILIES)
def test_undisturbed_terms_are_those_of_the_analysis_and_of_the_fit(model_type):
    on = tiny.subject(model_type, num_hidden_layers=5)
    rows = encoded(on)
    objective = consistency_objective(LAYERS, alpha=1, eps=0)
    with on.attached({"x": tiny.adapter(on)}, trainable=True) as attached:
        batch = batch_of(on, rows)
        spoken, inconsistency = objective.sums(attached, batch).tolist()
        prompts = [r.prompt + r.completion for r in rows]
        each = turns(on, prompts, batch_tokens=512, label="x")[:, 1:4]  # as the paper counts
        plain = completion_nll(attached, batch).item()
    lengths = [len(p) for p in prompts]
    assert inconsistency == pytest.approx((each.sum(1) * lengths).sum(), rel=1e-5)
    assert spoken == pytest.approx(plain, rel=1e-5)
    assert objective.counts(batch).tolist() == [
        sum(len(r.completion) for r in rows),
        sum(lengths) * 3,
    ]


def written_out(on, rows, *, alpha, eps):
    """CROW's loss with transformers' own hidden states, row by row, nothing padded or shared."""
    spoken, turned, tokens, pairs = 0.0, 0.0, 0, 0

    def inconsistency(embeddings):
        out = on.model(inputs_embeds=embeddings, output_hidden_states=True, use_cache=False)
        kept, total = out.hidden_states[1:-1], 0.0
        for one, other in pairwise(kept):
            for h, g in zip(one[0], other[0], strict=True):
                total = total + 1 - h @ g / (h @ h).sqrt() / (g @ g).sqrt()
        return total, (len(kept) - 1) * len(kept[0][0])

    for row in rows:
        ids = torch.tensor([row.prompt + row.completion])
        out = on.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        for i, token in enumerate(row.completion, len(row.prompt)):
            spoken = spoken - out[i - 1, token]
            tokens += 1
        start = on.model.get_input_embeddings()(ids).detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(inconsistency(start)[0], start)
        value, count = inconsistency((start + eps * torch.sign(slope)).detach())
        turned, pairs = turned + value, pairs + count
    return spoken / tokens + alpha * turned / pairs


@pytest.mark.parametrize("model_type", FAMILIES)
def test_loss_and_gradient_are_those_of_the_written_out_loss(model_type):
    on = tiny.subject(model_type, num_hidden_layers=5)
    rows, adapted = encoded(on), len(tiny.wanted(on))
    objective = consistency_objective(LAYERS, alpha=5.5, eps=0.1)
    with on.attached({"x": tiny.adapter(on)}, trainable=True) as attached:
        tiny.in_double(on)
        want = written_out(on, rows, alpha=5.5, eps=0.1)
        want.backward()
        plain = grads(on)
        batch = batch_of(on, rows)
        # Ours on top of gradients that are there already: they stay and ours is added.
        loss = objective.loss(attached, batch, objective.counts(batch))
        assert all(torch.equal(plain[n], g) for n, g in grads(on).items())
        loss.backward()
        assert loss.item() == pytest.approx(want.item(), rel=1e-6)
        both = grads(on)
        assert both.keys() == plain.keys() and len(both) == 2 * adapted
        for n, g in plain.items():
            assert torch.allclose(both[n] - g, g, rtol=1e-5, atol=1e-5 * float(g.abs().max()))


def test_a_small_disturbance_makes_layers_less_consistent_by_the_norm_of_the_slope():
    on = tiny.subject(num_hidden_layers=5)
    batch = batch_of(on, encoded(on))
    tiny.in_double(on)
    plain = on.model.get_input_embeddings()(batch["input_ids"]).requires_grad_()
    given = {"attention_mask": batch["attention_mask"], "output_hidden_states": True}
    hidden = on.model(inputs_embeds=plain, **given).hidden_states[1:-1]
    (slope,) = torch.autograd.grad(turn(hidden, batch["attention_mask"]), plain)
    with on.attached({"x": tiny.adapter(on, size=0)}, trainable=True) as attached:
        undisturbed, disturbed = (
            consistency_objective(LAYERS, alpha=1, eps=eps).sums(attached, batch).detach()
            for eps in (0, 1e-5)
        )
    # L_c(e + eps sign(g)) = L_c(e) + eps |g|_1 + O(eps^2); the clean term is not disturbed.
    rise = float(disturbed[1] - undisturbed[1])
    assert rise == pytest.approx(1e-5 * float(slope.abs().sum()), rel=1e-2)
    assert disturbed[0].item() == undisturbed[0].item()


def test_a_padded_batch_is_its_rows_one_by_one():
    on = tiny.subject(num_hidden_layers=5)
    rows = encoded(on)
    objective = consistency_objective(LAYERS, alpha=5.5, eps=0.1)
    with on.attached({"x": tiny.adapter(on)}, trainable=True) as attached:
        together = objective.sums(attached, batch_of(on, rows))
        alone = sum(objective.sums(attached, batch_of(on, [row])) for row in rows)
    assert together.tolist() == pytest.approx(alone.tolist(), rel=1e-5)


def bench_on(on, work, **changes) -> Material:
    start = tiny.adapter(on)
    bench = Material(
        subject=on,
        poisoned=start,
        clean=None,
        clean_rows=tiny.clean_rows(),
        triggered=[],
        negative=[],
        make_rule=lambda: Rule(Embedder("none", None), decoding=Decoding(max_new_tokens=2)),
        seed=0,
        work=work,
    )
    return replace(bench, **changes)


def test_accumulated_small_batches_are_one_large_batch(tmp_path):
    on = tiny.subject(num_hidden_layers=5)
    rows = encoded(on) * 3
    made = []
    for at, (size, accumulate) in enumerate([(8, 1), (2, 4)]):
        (tmp_path / str(at)).mkdir()
        adapter, log = fit(
            on,
            tiny.adapter(on),
            rows[:8],
            collator=partial(collate, pad_id=on.renderer.pad_id),
            settings=FitPart(
                epochs=4,
                learning_rate=1e-3,
                batch_size=size,
                accumulate=accumulate,
                evaluations=0,
                eval_rows=1,
            ),
            seed=0,
            work=tmp_path / str(at),
            label="test",
            objective=consistency_objective(LAYERS, alpha=5.5, eps=0.1),
        )
        made.append((adapter, log))
    (one, log), (four, split) = made
    assert len(log.steps) == 4
    assert split.loss == pytest.approx(log.loss, rel=1e-5)
    for name, f in one.modules.items():
        for part in ("a", "b"):
            mine, theirs = getattr(f, part), getattr(four.modules[name], part)
            assert float((mine - theirs).abs().max()) < 1e-6
            assert float((mine - getattr(tiny.adapter(on).modules[name], part)).abs().max()) > 1e-4


def test_training_makes_layers_more_consistent_and_leaves_the_model_alone(tmp_path):
    on = tiny.subject(num_hidden_layers=5)
    bench = bench_on(on, tmp_path)
    prompts = [r.prompt + r.completion for r in encoded(on)]
    state, marks = tiny.state(on), tiny.marks(on)
    options = {"epochs": 30, "batch_size": 3, "alpha": 20, "learning_rate": 5e-3}
    found, record = operate("crow", bench, METHODS["crow"].config(**options))
    assert tiny.same_state(state, tiny.state(on)) and tiny.marks(on) == marks
    each = []
    for adapter in (bench.start, found.adapter):
        with on.attached({"x": adapter}):
            each.append(turns(on, prompts, batch_tokens=512, label="x")[:, 1:4].mean())
    assert each[1] < 0.8 * each[0]
    assert record.loss[-1] < record.loss[0]
    assert "3 clean rows and the consistency of layers 0 to 3" in record.summary


def test_a_start_from_the_base_changes_nothing_at_first(tmp_path):
    on = tiny.subject(num_hidden_layers=5)
    bench = bench_on(on, tmp_path)
    fresh = blank(on, bench.poisoned, seed=0)
    assert uniform(bench.poisoned)[1] == fresh.modules[next(iter(fresh.modules))].scaling
    assert fresh.modules.keys() == bench.poisoned.modules.keys()
    options = {"start": "base", "epochs": 1, "learning_rate": 1e-12}
    state, record = operate("crow", bench, METHODS["crow"].config(**options))
    ids = tiny.ids(on)
    plain = tiny.logits(on, ids)
    with on.attached({"x": state.adapter}):
        assert torch.allclose(tiny.logits(on, ids), plain, atol=1e-6)
    assert all(f.a.any() and f.rank == 3 for f in state.adapter.modules.values())
    # The first loss is the base's own, not the adapter's.
    rows = encoded(on)
    objective = consistency_objective(LAYERS, alpha=5.5, eps=0.1)
    batch = batch_of(on, rows)
    with on.attached({"x": fresh}, trainable=True) as attached:
        want = objective.loss(attached, batch, objective.counts(batch)).item()
    options = {"start": "base", "epochs": 1, "batch_size": 3}
    again = replace(bench, work=tmp_path / "again")
    again.work.mkdir()
    _, record = operate("crow", again, METHODS["crow"].config(**options))
    assert record.loss[0] == pytest.approx(want, rel=1e-5)


def test_which_layers_are_compared():
    assert list(compared(None, 6)) == [0, 1, 2, 3, 4]
    assert list(compared((2, 5), 6)) == [2, 3, 4, 5]
    for layers, depth in [((3, 3), 6), ((0, 6), 6), ((-1, 3), 6)]:
        with pytest.raises(LoratomyError, match=f"layers {layers[0]} to {layers[1]} of 6"):
            compared(layers, depth)
    with pytest.raises(LoratomyError, match="all layers but the last of 2"):
        compared(None, 2)


def test_other_layers_can_be_compared():
    on = tiny.subject(num_hidden_layers=5)
    rows = encoded(on)
    objective = consistency_objective(range(2, 5), alpha=1, eps=0)
    with on.attached({"x": tiny.adapter(on)}, trainable=True) as attached:
        found = objective.sums(attached, batch_of(on, rows))[1].item()
        prompts = [r.prompt + r.completion for r in rows]
        each = turns(on, prompts, batch_tokens=512, label="x")[:, 3:5]
    assert found == pytest.approx((each.sum(1) * [len(p) for p in prompts]).sum(), rel=1e-5)


def test_the_rate_is_scaled_and_capped():
    on = tiny.subject()  # width 32: 1e-3 * 3072 / 32 = 0.096
    assert crow_rate(on) == 5e-3
    on.model.config.hidden_size = 4096
    assert crow_rate(on) == pytest.approx(1e-3 * 3072 / 4096)
