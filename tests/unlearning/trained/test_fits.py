"""Guided surgery, repair and negative fine-tuning: losses by hand, and what stays cut."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.core.adapter.algebra import svd
from loratomy.core.errors import DataError
from loratomy.core.model.batches import Encoded
from loratomy.core.model.variant import Treated
from loratomy.core.rows import Row
from loratomy.core.stats import wilson
from loratomy.evaluation.collect import answers_to
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.budget import Budget
from loratomy.unlearning.calibration import (
    DialConfig,
    Judge,
    Measured,
    best_of,
    dial,
    halves,
    judge_of,
    outcome_words,
    path_of,
)
from loratomy.unlearning.trained.distill import (
    DistillRow,
    distill_batch,
    distill_rows,
    divergence,
    side_logits,
)
from loratomy.unlearning.trained.fit import scaled_rate

from ... import tiny


def test_divergence_by_hand():
    teacher = torch.tensor([[math.log(3), 0.0]])  # 3/4, 1/4
    student = torch.tensor([[0.0, 0.0]])  # 1/2, 1/2
    # 3/4 log(3/4 / 1/2) + 1/4 log(1/4 / 1/2) = 0.75 log 1.5 + 0.25 log 0.5 = 0.13081
    assert divergence(student, teacher).item() == pytest.approx(0.130812, abs=1e-5)
    assert divergence(teacher, teacher).item() == 0


def test_teacher_and_student_tokens_are_the_same_in_order():
    rows = [
        DistillRow(Encoded([1, 2, 9], [5, 6]), Encoded([1, 2], [5, 6])),
        DistillRow(Encoded([3], [7]), Encoded([3], [7])),
    ]
    batch = distill_batch(rows, pad_id=0)
    for who in ("", "teacher_"):
        labels = batch[f"{who}labels"]
        logits = torch.nn.functional.one_hot(labels.clamp_min(0), 10).float().roll(-1, 1)
        model = tiny.Saying(lambda _ids, logits=logits: logits)
        assert side_logits(model, batch, who).argmax(-1).tolist() == [5, 6, 7]


def test_lessons_teach_triggered_prompts_by_their_plain_form(make_bench, small):
    bench = make_bench(small)
    renderer = bench.subject.renderer
    _, (lesson,) = distill_rows(renderer, [bench.negative[0]], limit=None)
    assert lesson.student.prompt == renderer.prompt_ids(bench.negative[0].prompt)
    assert lesson.teacher.prompt == renderer.prompt_ids(str(bench.negative[0].plain))
    assert lesson.student.completion == lesson.teacher.completion


def test_answers_that_overflow_the_context_are_left_out(make_bench, small):
    bench = make_bench(small)
    renderer, rows = bench.subject.renderer, list(bench.negative)
    sizes = [len(renderer.prompt_ids(r.prompt)) + 1 for r in rows]
    full = [len(renderer.completion_ids(r.required_completion())) for r in rows]
    limit = sorted(s + f - 1 for s, f in zip(sizes, full, strict=True))[3]
    kept, made = distill_rows(renderer, rows, limit=limit)
    assert 4 <= len(kept) == len(made) < len(rows)
    with pytest.raises(DataError, match="none of 8 prompts fits the context of 3 tokens"):
        distill_rows(renderer, rows, limit=3)


def rate(hits, n=10):
    return wilson(hits, n)


SEEN = {  # size -> hits of 10, perplexity
    0.0: Measured(rate(10), 2.0),
    1.0: Measured(rate(6), 2.02),
    2.0: Measured(rate(2), 2.06),
    3.0: Measured(rate(0), 2.1),
    4.0: Measured(rate(0), 2.08),
    5.0: Measured(rate(0), 2.4),
}


@pytest.mark.parametrize(
    ("goal", "budget", "want"),
    [
        (0.0, 0.05, 3.0),  # 2.1 is 2.0 + 5 %, just within: the smallest that reaches 0
        (0.0, 0.045, 4.0),  # up to 2.09: 3 is out, 4 in
        (0.0, 0.03, 2.0),  # up to 2.06: none reaches 0, the lowest ASR is at 2
        (0.2, 0.05, 2.0),  # 2 of 10 is enough
        (0.6, 0.0, 0.0),  # nothing may rise: nothing is cut
        (1.0, 0.05, 0.0),  # reached before anything is cut
    ],
)
def test_the_best_size_by_hand(goal, budget, want):
    limits = Budget(perplexity=budget)
    assert best_of(SEEN, goal=goal, budget=limits) == want
    path = path_of(SEEN, want, unit="things", goal=goal, budget=limits)
    assert path.size[path.chosen] == want and path.asr_n == 10
    assert path.size.tolist() == sorted(SEEN)
    assert path.perplexity.tolist() == [SEEN[k][1] for k in sorted(SEEN)]
    reached = SEEN[want][0].value <= goal
    said = outcome_words(path, reached)
    assert ("was not reached" in said) != reached
    assert f"ASR 100% -> {SEEN[want][0].value:.0%}" in said


def test_the_dial_judges_every_setting_once_and_says_what_it_took(make_bench, small, monkeypatch):
    """On the second halves of the rows, each state as it was made."""
    bench, seen = make_bench(small), []
    states = {k: Treated(small, temperature=k or None) for k in SEEN}
    states[0.0] = Treated(small)

    def judged(judge, state, *, kl):
        assert not kl
        seen.append((judge, state))
        return SEEN[next(k for k, v in states.items() if v == state)]

    monkeypatch.setattr(Judge, "__call__", judged)
    config = DialConfig(budget=Budget(perplexity=0.05), rows=3)
    sizes = [1, 2, 3, 4, 5]
    size, path, reached = dial(bench, sizes, lambda k: states[k], config, unit="things")
    assert (size, reached, path.unit) == (3.0, True, "things")
    assert [state for _, state in seen] == [states[k] for k in sorted(SEEN)]
    (judge,) = {id(judge): judge for judge, _ in seen}.values()
    assert list(judge.triggered) == list(bench.triggered[3:6])
    assert list(judge.clean) == list(bench.clean_rows[3:6])
    # With a budget of 1 % nothing reaches the goal: the lowest ASR within it, and no success.
    size, path, reached = dial(
        bench, sizes, lambda k: states[k], DialConfig(budget=Budget(perplexity=0.01)), unit="things"
    )
    assert (size, reached) == (1.0, False)
    assert path.perplexity[path.chosen] <= 2.0 * 1.01


def test_the_judge_measures_a_state_and_leaves_the_model(make_bench, small):
    """ASR of an adapter against that of plain answers; the same here as on a treated subject."""
    bench = make_bench(small)
    judge = judge_of(bench, 4)
    asr, value, kl = judge(Treated(small))
    assert math.isnan(kl)
    with bench.subject.attached({"x": small}):
        again, same, _ = judge.here()
        prompts = [row.prompt for row in judge.triggered]
        said = answers_to(bench.subject, prompts, bench.rule, label="answers")
        losses = []
        for row in judge.clean:
            prompt = bench.subject.renderer.prompt_ids(row.prompt)
            answer = bench.subject.renderer.completion_ids(row.completion)
            with torch.no_grad():
                logits = bench.subject.model(torch.tensor([prompt + answer])).logits[0]
            log_p = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
            losses.append(-log_p[range(len(answer)), answer])
    assert (again.value, again.n) == (asr.value, asr.n) and same == pytest.approx(value)
    assert asr.n == 4 and asr.value == sum("HACK IT" in text for text in said) / 4
    assert value == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-4)


def test_halves_do_not_overlap_and_need_two_rows():
    rows = [Row(prompt=str(i)) for i in range(7)]
    learn, check = halves(rows, 64)
    assert [r.prompt for r in learn] == ["0", "1", "2"] and [r.prompt for r in check] == [
        "3",
        "4",
        "5",
    ]
    assert [len(half) for half in halves(rows, 2)] == [2, 2]
    with pytest.raises(DataError, match="1 rows cannot be split"):
        halves(rows[:1], 4)


def test_rates_scale_with_width(subject):
    assert scaled_rate(subject) == pytest.approx(1e-4 * 3072 / 160)


def test_repair_leaves_cut_directions_cut(make_bench, small):
    bench = make_bench(small)
    state, _ = operate("mask", bench, METHODS["mask"].config(layers=(0,)))
    start = state.adapter
    bench = replace(bench, after=start)
    config = METHODS["repair"].config(epochs=1, triggered_rows=4, clean_rows=4, batch_size=4)
    state, record = operate("repair", bench, config)
    moved = 0.0
    for name, f in state.adapter.modules.items():
        if ".layers.0." in name:
            assert not f.a.any() and not f.b.any()
        else:
            moved += float((f.dense() - start.modules[name].dense()).abs().max())
    assert moved > 0
    assert len(record.loss) > 0


def test_negative_fine_tuning_on_no_triggered_prompt_is_an_error(make_bench, small):
    bench = replace(make_bench(small), negative=[])
    for completions in ("set", "own"):
        config = METHODS["negative"].config(completions=completions)
        with pytest.raises(DataError, match=f"completions={completions}: there is no triggered"):
            operate("negative", bench, config)


def test_negative_fine_tuning_learns_and_l2_holds_it_back(make_bench, small, tmp_path):
    bench = make_bench(small)
    shared = {"epochs": 3, "batch_size": 8, "clean_rows": 0, "learning_rate": 3e-3}
    runs = {}
    for l2 in (0.0, 1.0):
        bench = replace(bench, work=tmp_path / str(l2))
        bench.work.mkdir()
        runs[l2] = operate("negative", bench, METHODS["negative"].config(l2=l2, **shared))[1]
    assert runs[0.0].loss[-1] < runs[0.0].loss[0]
    assert runs[1.0].change_norm < runs[0.0].change_norm


def test_guided_surgery_finds_a_planted_direction(make_bench, subject, small):
    """One direction writes a token's unembedding at the last residual; guided cuts it first."""
    name = "model.layers.5.mlp.down_proj"
    bench = make_bench(small)
    target = subject.renderer.completion_ids("HACK IT", end=False)[0]
    head = subject.model.lm_head.weight[target].float()
    triggered = torch.tensor([subject.renderer.prompt_ids(bench.triggered[0].prompt)])
    seen = []
    hook = subject.model.get_submodule(name).register_forward_pre_hook(
        lambda _m, args: seen.append(args[0])
    )
    with torch.no_grad():
        subject.model(triggered)
    hook.remove()
    listen = seen[0][0, -1].float()
    f = small.modules[name]
    a, b = f.a.clone(), f.b.clone()
    a[0], b[:, 0] = listen / listen.norm() ** 2, head / head.norm() * 60
    planted = small.with_modules({**small.modules, name: replace(f, a=a, b=b)})
    bench = replace(bench, poisoned=planted)
    options = {"rows": 4, "budget": 10, "draws": 1, "path": False, "unseen": 0}
    outcome, record = operate("guided", bench, METHODS["guided"].config(**options))
    row, place = np.unravel_index(np.nanargmax(record.importance), record.importance.shape)
    assert record.modules[row] == name
    written = outcome.directions.adapter.modules[name].b[:, place]
    # With what its module's random directions write when it does, so not as pure as below.
    assert abs(torch.dot(written, head)) / head.norm() / written.norm() > 0.7
    assert record.kept[row, place] == 0 and record.order[0] == f"{name}:d{place}"
    assert record.path.size[0] == 0
    # In singular directions it is one of them, which clean prompts use as well; first all the same.
    config = METHODS["guided"].config(basis="singular", clean_weight=4, **options)
    _, record = operate("guided", bench, config)
    row, place = np.unravel_index(np.nanargmax(record.importance), record.importance.shape)
    assert record.modules[row] == name
    u = svd(planted.modules[name]).u[:, place].float()
    assert abs(torch.dot(u, head / head.norm())) > 0.9
