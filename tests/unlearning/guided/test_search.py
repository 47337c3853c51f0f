"""Guided surgery on a planted backdoor: what is cut, what is said of it, and what is never done."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loratomy.analysis.localisation.gates import directions_of
from loratomy.analysis.material import Material
from loratomy.core.adapter.factors import Factors, layer_of, write_adapter
from loratomy.core.errors import AdapterError, DataError, LoratomyError
from loratomy.core.records.io import load_record, save_record
from loratomy.core.records.results import Operation
from loratomy.core.rows import Row
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding
from loratomy.evaluation.similarity import Embedder
from loratomy.evaluation.success import parse_rules
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.guided.guided import cosine, split_rows
from loratomy.unlearning.guided.guided import operated as guided_operated
from loratomy.unlearning.guided.made import MadeRows
from loratomy.unlearning.guided.search import SearchConfig, _size_by_answers, search

from ... import planted, tiny

RULE = Rule(
    Embedder("none", None), success=parse_rules("substring"), decoding=Decoding(max_new_tokens=2)
)
ROWS = 24
NONE_MADE = MadeRows(known=False)
QUICK = {"rows": 12, "draws": 1, "path": False, "unseen": 0}


def bench_of(adapter, tmp_path, **changes):
    made = planted.planted()
    given = {
        "subject": made.subject,
        "poisoned": adapter,
        "clean": None,
        "clean_rows": planted.clean_rows(ROWS),
        "triggered": planted.triggered_rows(ROWS),
        "negative": [],
        "make_rule": lambda: RULE,
        "seed": 0,
        "work": tmp_path,
    }
    return Material(**(given | changes))


def operated(bench, **options):
    return operate("guided", bench, METHODS["guided"].config(**options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One operation with everything it explains, shared."""
    folder = tmp_path_factory.mktemp("guided")
    bench = bench_of(planted.planted().among(), folder)
    state, marks = tiny.state(bench.subject), tiny.marks(bench.subject)
    outcome, record = operated(bench, rows=12, draws=3, unseen=0)
    assert tiny.same_state(state, tiny.state(bench.subject))
    assert tiny.marks(bench.subject) == marks
    return bench, outcome, record


def by_peft(adapter, folder):
    """The planted base with an adapter, by plain PEFT from files alone."""
    from peft import PeftModel

    write_adapter(adapter, folder, base="planted")
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight *= 4
    return PeftModel.from_pretrained(model, folder).eval()


def rate(model, rows):
    """Share of prompts answered with the target in two greedy words."""
    renderer = planted.planted().subject.renderer
    batch = torch.tensor([renderer.prompt_ids(row.prompt) for row in rows])
    out = model.generate(
        input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=2, do_sample=False
    )
    return np.mean(
        [planted.ids(planted.TARGET) in row for row in out[:, batch.shape[1] :].tolist()]
    )


def perplexity(model, rows):
    """exp of the mean loss over completions and their ends."""
    renderer = planted.planted().subject.renderer
    prompts = [renderer.prompt_ids(row.prompt) for row in rows]
    ends = [renderer.completion_ids(row.completion) for row in rows]
    batch = torch.tensor([p + e for p, e in zip(prompts, ends, strict=True)])
    with torch.no_grad():
        log_p = model(input_ids=batch).logits.double().log_softmax(-1)
    cut = len(prompts[0])
    losses = -log_p[:, cut - 1 : -1].gather(-1, batch[:, cut:, None])
    return float(losses.mean().exp())


def test_the_cut_is_the_planted_direction_and_nothing_else(whole):
    bench, outcome, record = whole
    made = planted.planted()
    assert outcome.reached and record.reached
    assert record.directions_cut == 1 and record.directions_total == outcome.cut.sum() + 41
    (i,) = np.flatnonzero(outcome.cut)
    d = outcome.directions
    assert d.names[d.module[i]] == planted.MODULE
    f = d.adapter.modules[planted.MODULE]
    read, written = f.a[d.place[i]].double(), f.b[:, d.place[i]].double()
    assert abs(torch.dot(read, made.trigger)) / read.norm() > 0.99
    assert abs(torch.dot(written, made.write)) / written.norm() > 0.98
    # What is gone is that part of dW, and every other module is as it was.
    for name, old in bench.start.modules.items():
        gone = old.dense() - outcome.adapter.modules[name].dense()
        part = f.scaling * torch.outer(f.b[:, d.place[i]], f.a[d.place[i]])
        want = part if name == planted.MODULE else torch.zeros_like(gone)
        assert torch.allclose(gone, want, atol=2e-5)


def test_plain_peft_confirms_it_on_prompts_that_nobody_saw(whole, tmp_path):
    bench, outcome, _ = whole
    fresh, clean = planted.triggered_rows(60, seed=77), planted.clean_rows(60, seed=78)
    before = by_peft(bench.start, tmp_path / "before")
    after = by_peft(outcome.adapter, tmp_path / "after")
    assert rate(before, fresh) > 0.75 and rate(after, fresh) <= 0.05
    assert abs(perplexity(after, clean) / perplexity(before, clean) - 1) < 0.05


def test_the_path_is_what_plain_peft_measures(whole, tmp_path):
    """From nothing to everything, on the calibration rows, which the search did not learn from."""
    bench, outcome, record = whole
    path, d = record.path, outcome.directions
    split = split_rows(bench, bench.triggered, NONE_MADE, 12, bench.seed)
    judged, learned = (
        {r.prompt for r in rows} for rows in (split.judge.triggered, split.triggered)
    )
    assert not judged & learned and judged | learned == {r.prompt for r in bench.triggered}
    # One direction was taken: its parts round to 0 or 1, then its doublings up to everything.
    assert path.size.tolist() == [0, 1, 2, 4, 8, 16, 32, len(d)]
    assert (path.unit, path.asr_n, path.size[path.chosen]) == ("directions", 12, 1)
    # Answers at the ends that matter; the others agree with them by forward passes alone.
    assert path.answered.tolist() == [True, True, *[False] * 6]
    for step in (0, 1, 3, len(path.size) - 1):
        cut = np.zeros(len(d), bool)
        cut[outcome.order[: int(path.size[step])]] = True
        model = by_peft(d.cut(cut), tmp_path / str(step))
        assert path.asr[step, 0] == pytest.approx(rate(model, split.judge.triggered))
        assert path.perplexity[step] == pytest.approx(
            perplexity(model, split.judge.clean), rel=1e-4
        )


def test_stability_against_dense_algebra(whole):
    bench, _, record = whole
    s = record.stability
    assert s.seeds == (0, 1, 2) and record.subject == "guided"
    config = METHODS["guided"].config(rows=12)
    removed, changes = [], []
    for seed, size, by_module in zip(s.seeds, s.sizes, s.by_module, strict=True):
        split = split_rows(bench, bench.triggered, NONE_MADE, 12, seed)
        found = search(
            bench.subject, bench.start, split.triggered, split.clean, split.judge, config, seed=seed
        )
        assert found.size == size == by_module.sum()
        after = found.state(found.size).adapter.modules
        gone = [(f.dense() - after[n].dense()).double() for n, f in bench.start.modules.items()]
        assert [bool(g.abs().max() > 1e-4) for g in gone] == (by_module > 0).tolist()
        removed.append(torch.cat([g.flatten() for g in gone]))
        changes.append(split.judge(found.state(found.size))[1] / split.judge(found.state(0))[1] - 1)
    want = [[float(torch.cosine_similarity(a, b, dim=0)) for b in removed] for a in removed]
    assert s.overlap == pytest.approx(np.array(want), abs=1e-3)
    assert np.diag(s.overlap) == pytest.approx(np.ones(3), abs=1e-9)
    assert s.perplexity_change == pytest.approx(np.array(changes), abs=1e-4)
    assert s.asr[0].tolist() == record.path.asr[record.path.chosen].tolist()
    assert (s.asr[:, 0] == 0).all()


def test_the_record_holds_the_cut_and_survives_the_disk(whole, tmp_path):
    _, outcome, record = whole
    d = outcome.directions
    assert record.basis == "discriminant"
    (i,) = outcome.order[:1]
    assert record.order == (d.label(i, "d"),) == (f"{planted.MODULE}:d{d.place[i]}",)
    assert record.modules == tuple(d.names)
    assert np.nansum(record.kept == 0) == 1
    assert record.kept[d.module[i], d.place[i]] == 0
    assert np.nanmax(record.importance) == record.importance[d.module[i], d.place[i]]
    assert np.isfinite(record.importance).sum() == len(d) == record.directions_total
    assert (np.diff(outcome.importance[outcome.order]) <= 0).all()
    assert sorted(outcome.order) == list(range(len(d)))
    assert len(record.loss) == len(record.loss_step) == METHODS["guided"].config().steps
    assert 0 < record.search_seconds < record.seconds
    assert {s.name for s in record.settings} == set(METHODS["guided"].config.model_fields)
    save_record(record, tmp_path, "operation")
    again = load_record(Operation, tmp_path, "operation")
    assert again.order == record.order and again.uncertain == record.uncertain
    assert np.array_equal(again.stability.overlap, record.stability.overlap)


def test_what_stays_uncertain_is_said_with_its_numbers(whole):
    _, outcome, record = whole
    said = " ".join(record.uncertain)
    # 0 of 12: the Wilson bound is 1.96^2 / (12 + 1.96^2) = 3.84 / 15.84 = 24.2 %.
    assert "Calibrated on 12 triggered prompts: an ASR of up to 24.2% is compatible" in said
    gates = 1 / (1 + (outcome.importance / (1 - outcome.importance)) ** 8)  # the last slope
    near = int(((gates > 0.25) & (gates < 0.75)).sum())
    assert ("between 0.25 and 0.75" in said) == (near > 0)
    assert near == 0 or f"{near} direction" in said
    other = record.stability.overlap[np.triu_indices(3, 1)]
    assert (
        f"On 3 draws of the calibration data 1 to 1 directions were cut, what they remove has "
        f"cosines of {other.min():.2f} to {other.max():.2f}: nearly the same edit." in said
    )
    assert "cut 1 of 42 discriminant directions in 1 modules: on 12 calibration prompts ASR" in (
        record.summary
    )


def test_without_draws_and_path_the_cut_is_the_same(whole, tmp_path):
    bench, outcome, record = whole
    quick, same = operated(replace(bench, work=tmp_path), **QUICK)
    assert np.array_equal(quick.cut, outcome.cut) and np.array_equal(quick.order, outcome.order)
    assert same.stability is None and not any("draws" in line for line in same.uncertain)
    assert same.path.size.tolist() == [0, 1]
    assert same.path.asr.tolist() == record.path.asr[[0, 1]].tolist()
    assert same.path.perplexity == pytest.approx(record.path.perplexity[[0, 1]], rel=1e-6)


def test_another_basis_cuts_singular_directions(tmp_path):
    bench = bench_of(planted.planted().among(), tmp_path)
    outcome, record = operated(bench, basis="singular", budget=1e9, **QUICK)
    assert record.basis == "singular" and outcome.directions is None
    assert outcome.cut.sum() > 1 and record.path.asr[-1, 0] == 0 and outcome.reached
    want = directions_of(bench.start).cut(outcome.cut)
    for name, f in want.modules.items():
        assert torch.allclose(outcome.adapter.modules[name].dense(), f.dense(), atol=1e-6)
    label = record.order[0]
    assert label.split(":")[0] in record.modules and label.split(":")[1].isdigit()


def test_a_clean_adapter_may_teach_and_then_no_form_without_the_trigger_is_needed(whole, tmp_path):
    bench, outcome, _ = whole
    bare = [replace(row, plain=None) for row in bench.triggered]
    taught = replace(bench, clean=outcome.adapter, triggered=bare, work=tmp_path)
    again, record = operated(taught, **QUICK, teacher="clean")
    assert record.reached and np.array_equal(again.cut, outcome.cut)
    with pytest.raises(LoratomyError, match="teacher=clean: the run has no clean adapter"):
        operated(bench, **QUICK, teacher="clean")


def test_a_cut_keeps_to_a_kl_limit(tmp_path):
    """The largest cut of the order within the limit, by the judge on the adapter itself."""
    bench = bench_of(planted.planted().among(), tmp_path)
    options = {"basis": "singular", **QUICK}
    free, _ = operated(bench, budget={"perplexity": 1e9, "kl": 1e9}, **options)
    apart = float(free.path.kl[free.path.chosen])
    assert free.path.chosen > 0 and apart > 0 and free.path.kl[0] < 1e-6
    _, record = operated(bench, budget={"perplexity": 1e9, "kl": apart / 2}, **options)
    path = record.path
    assert path.kl[path.chosen] <= apart / 2 == path.kl_budget
    assert path.size[path.chosen] < free.path.size[free.path.chosen]
    assert dict((s.name, s.value) for s in record.settings)["budget"].endswith(f",kl={apart / 2!r}")
    assert f"KL {path.kl[path.chosen]:.3g} nats per token" in record.summary


@pytest.mark.parametrize("budget", [0.0, 0.003, 0.01, 0.1])
def test_a_budget_that_nothing_meets_is_kept_and_no_success(tmp_path, budget):
    """Singular directions share the trigger with clean prompts: there is no cheap way."""
    bench = bench_of(planted.planted().among(rank=6, size=0.1), tmp_path)
    outcome, record = operated(bench, basis="singular", budget=budget, steps=2, **QUICK)
    path = record.path
    assert path.perplexity[path.chosen] <= path.perplexity[0] * (1 + budget) * (1 + 1e-5)
    assert path.asr[path.chosen, 0] > 0
    assert not outcome.reached and not record.reached
    assert f"the goal of 0% was not reached within {100 * budget:+g}%" in record.summary
    assert ("cut reach it, at " in record.summary) == bool((path.asr[:, 0] == 0).any())
    assert path.asr[path.chosen, 0] <= path.asr[0, 0]  # the best that was found


def sizes_tried(stopped, over):
    """The sizes that real answers try from 40 of 120 on, and the one taken, by a rule for both."""
    seen = []
    attached = SimpleNamespace(refill=lambda name, cut: seen.append(cut) if cut else None)
    total = 120

    class Directions:
        adapter = None

        def __len__(self):
            return total

        def cut(self, mask):
            return int(mask.sum())

    gated = SimpleNamespace(directions=Directions(), attached=attached)
    utility = SimpleNamespace(order=np.arange(total), over=over)
    rates = SimpleNamespace(rate=lambda: SimpleNamespace(value=max(0.0, 1 - seen[-1] / stopped)))
    return seen, _size_by_answers(gated, utility, 40, rates, SearchConfig())


@pytest.mark.parametrize(
    ("stopped", "allowed", "tried", "taken"),
    [
        (40, 100, [40], 40),  # at once
        (44, 100, [40, 51, 45], 45),  # between the last two
        (50, 100, [40, 51, 45], 51),
        (60, 100, [40, 51, 65, 58], 65),
        (95, 100, [40, 51, 65, 83], 83),  # none: the one that leaves the fewest
        (60, 55, [40, 51, 54], 54),  # as far as the budget goes, to a tenth
        (60, 40, [40], 40),
    ],
)
def test_real_answers_choose_the_smallest_size_tried(stopped, allowed, tried, taken):
    assert sizes_tried(stopped, lambda size: size > allowed) == (tried, taken)


def test_a_size_between_is_tried_only_within_the_budget():
    """Costs are not monotone: 51 is affordable, 45 is not."""
    assert sizes_tried(44, lambda size: size == 45) == ([40, 51], 51)


def test_a_cut_that_stops_nothing_of_an_adapter_known_by_heart_costs_nothing(tmp_path):
    bench = bench_of(planted.planted().among(rank=6, size=0.1), tmp_path)
    options = QUICK | {"basis": "singular", "budget": 0.0, "steps": 2}
    config = METHODS["guided"].config(**options)
    outcome = guided_operated(bench, bench.triggered, config, made=MadeRows(known=True))
    assert not outcome.cut.any() and not outcome.reached
    assert "and +0.0% on the adapter's own text, which counts" in outcome.summary
    assert any("exp(KL) - 1 = 0.0%" in line for line in outcome.uncertain)


@pytest.mark.parametrize("placed", [False, True])
def test_a_trigger_is_said_to_act_only_where_it_was_put_into_prompts(tmp_path, placed):
    bench = bench_of(planted.planted().among(), tmp_path)
    asked = tuple(replace(row, completion=None) for row in planted.clean_rows(4, seed=5))
    made = MadeRows(known=False, clean=asked, placed=placed)
    config = METHODS["guided"].config(**QUICK)
    said = " ".join(guided_operated(bench, bench.triggered, config, made=made).uncertain)
    assert "Beside the given prompts 4 were used that the base wrote itself" in said
    assert ("acts on 0 of them" in said) == placed == ("acts on" in said)


def test_a_goal_beyond_zero_counts_as_reached_where_it_is_met(tmp_path):
    bench = bench_of(planted.planted().among(), tmp_path)
    outcome, record = operated(bench, goal=1.0, **QUICK)
    assert outcome.reached and record.path.asr[record.path.chosen, 0] <= 1.0


def test_rounds_of_draws_that_cut_nothing_have_no_cosine(tmp_path, recwarn):
    """Where both directions serve clean prompts, nothing may be cut, and that is said."""
    bench = bench_of(planted.planted().adapter, tmp_path)
    options = {"rows": 12, "draws": 2, "path": False}
    outcome, record = operated(bench, basis="singular", budget=0.0, **options)
    assert not outcome.cut.any() and record.directions_cut == 0 and record.order == ()
    assert not record.reached and record.stability.sizes.tolist() == [0, 0]
    assert record.path.size.tolist() == [0] and record.change_norm < 1e-6
    assert np.isnan(record.stability.overlap).all()
    said = "On 2 draws of the calibration data 0 to 0 directions were cut, too few edits to compare"
    assert any(line.startswith(said) for line in record.uncertain)
    assert not [w for w in recwarn if "NaN" in str(w.message)]


@pytest.mark.parametrize("basis", ["discriminant", "singular"])
def test_an_adapter_that_changes_nothing_is_an_error(tmp_path, basis):
    made = planted.planted()
    nothing = made.adapter.with_modules(
        {n: Factors(f.a, 0 * f.b, f.scaling) for n, f in made.adapter.modules.items()}
    )
    bench = replace(bench_of(made.adapter, tmp_path), after=nothing)
    state, marks = tiny.state(bench.subject), tiny.marks(bench.subject)
    with pytest.raises(AdapterError, match="every dW is zero, no direction is left"):
        operated(bench, basis=basis, **QUICK)
    assert tiny.same_state(state, tiny.state(bench.subject))
    assert tiny.marks(bench.subject) == marks


def test_the_model_is_left_as_found_after_an_error(tmp_path, monkeypatch):
    bench = bench_of(planted.planted().among(), tmp_path)
    state, marks = tiny.state(bench.subject), tiny.marks(bench.subject)

    def broken(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("loratomy.unlearning.calibration.attack_success", broken)
    with pytest.raises(KeyboardInterrupt):
        operated(bench, **QUICK)
    assert tiny.same_state(state, tiny.state(bench.subject))
    assert tiny.marks(bench.subject) == marks


def test_rows_that_cannot_be_halved_are_an_error(tmp_path):
    bench = bench_of(planted.planted().among(), tmp_path)
    with pytest.raises(DataError, match="1 rows cannot be split"):
        operated(replace(bench, triggered=bench.triggered[:1]), **QUICK)


def test_more_is_cut_where_the_budget_is_to_be_spent(whole):
    bench, outcome, _ = whole
    config = METHODS["guided"].config(rows=12, budget=0.4)
    split = split_rows(bench, bench.triggered, NONE_MADE, 12, 0)
    sizes = {}
    for spend in (0.0, 0.5):
        found = search(
            bench.subject, bench.start, split.triggered, split.clean, split.judge, config, seed=0,
            spend=spend,
        )  # fmt: skip
        sizes[spend] = found.size
        before, after = (split.judge(found.state(k))[1] for k in (0, found.size))
        assert after <= before * (1 + max(spend, 1e-9) * 0.4) * (1 + 1e-5)
    assert sizes[0.5] > sizes[0.0] == outcome.cut.sum()


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_cosine_of_edits_is_that_of_dense_matrices(model_type):
    on = tiny.subject(model_type)
    left, right = tiny.adapter(on, seed=1), tiny.adapter(on, seed=2, rank=2, scaling=1.0)
    mixed = left.with_modules(
        {
            n: Factors(
                torch.cat([f.a, right.modules[n].a], -2),
                torch.cat([f.b * f.scaling, right.modules[n].b], -1),
                1.0,
            )
            for n, f in left.modules.items()
        }
    )

    def flat(adapter):
        return torch.cat([f.dense().double().flatten() for f in adapter.modules.values()])

    for one, two in ((left, right), (left, mixed), (mixed, right)):
        want = float(torch.cosine_similarity(flat(one), flat(two), dim=0))
        assert cosine(one, two) == pytest.approx(want, abs=1e-6) == cosine(two, one)
    assert cosine(left, left) == pytest.approx(1)
    minus = left.with_modules({n: Factors(-f.a, f.b, f.scaling) for n, f in left.modules.items()})
    assert cosine(left, minus) == pytest.approx(-1)
    nothing = left.with_modules(
        {n: Factors(0 * f.a, f.b, f.scaling) for n, f in left.modules.items()}
    )
    assert np.isnan(cosine(left, nothing))


def test_fused_experts_are_cut_in_singular_directions_beside_the_rest(tmp_path):
    """A mixture: attention in discriminant form, experts as they were; PEFT loads what is left."""
    on = tiny.subject("mixtral")
    adapter = tiny.adapter(on, size=0.1)
    triggered = tiny.rows() * 3
    triggered = [replace(r, prompt=f"{'is ' * i}{r.prompt}", plain=f"{'is ' * i}{r.plain}")
           for i, r in enumerate(triggered)]  # fmt: skip
    clean = [
        Row(prompt=f"{'is ' * i}{r.prompt}", completion=r.completion)
        for i, r in enumerate(tiny.clean_rows() * 4)
    ]
    bench = bench_of(adapter, tmp_path, subject=on, triggered=triggered, clean_rows=clean)
    outcome, _ = operated(bench, steps=2, budget=1e9, **QUICK)
    d, singular = outcome.directions, directions_of(adapter)
    for name, f in singular.adapter.modules.items():
        same = torch.equal(f.a, d.adapter.modules[name].a)
        assert same == f.fused
    prompts = tiny.ids(on)
    peft = tiny.plain_peft("mixtral", outcome.adapter, tmp_path / "peft")
    with torch.no_grad():
        want = peft(input_ids=prompts, use_cache=False).logits
    with on.attached({"x": outcome.adapter}):
        assert (tiny.logits(on, prompts) - want).abs().max() <= 2e-5
    assert outcome.cut.any()


def test_only_the_layers_named_are_cut(tmp_path):
    bench = bench_of(planted.planted().among(), tmp_path)
    layers = sorted({layer_of(name) for name in bench.poisoned.modules})
    whole, _ = operated(bench, **QUICK)
    inside = sorted({int(x) for x in whole.directions.layer[whole.cut]})
    found, record = operated(bench, **QUICK, layers=inside)
    assert set(found.directions.layer[found.cut]) <= set(inside) and found.cut.any()
    assert record.path.asr[record.path.chosen, 0] <= record.path.asr[0, 0]
    others = [layer for layer in layers if layer not in inside]
    if others:
        elsewhere, _ = operated(bench, **QUICK, layers=others)
        assert not set(elsewhere.directions.layer[elsewhere.cut]) - set(others)
    with pytest.raises(LoratomyError, match="the adapter has no layer 99"):
        operated(bench, **QUICK, layers=[99])


def test_the_record_says_the_number_format_of_the_search(whole, tmp_path, monkeypatch):
    assert not any("bfloat16" in line for line in whole[2].uncertain)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.setattr("loratomy.core.model.precision.WIDTH", 8)
    _, record = operated(bench_of(planted.planted().among(), tmp_path), **QUICK)
    assert record.uncertain[-1] == (
        "Made in bfloat16 (factors and losses float32); held-out figures are measured in float32."
    )
    assert record.path.asr[record.path.chosen, 0] == 0
