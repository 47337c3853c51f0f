"""Guided surgery, repair and negative fine-tuning: losses by hand, and what stays cut."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.core.algebra import svd
from loratomy.core.batches import Encoded
from loratomy.core.errors import DataError
from loratomy.core.results import Rate
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.distill import (
    Lesson,
    completion_logits,
    divergence,
    lesson_batch,
    lessons,
)
from loratomy.unlearning.fitted import scaled_rate
from loratomy.unlearning.path import walk


def test_divergence_by_hand():
    teacher = torch.tensor([[math.log(3), 0.0]])  # 3/4, 1/4
    student = torch.tensor([[0.0, 0.0]])  # 1/2, 1/2
    # 3/4 log(3/4 / 1/2) + 1/4 log(1/4 / 1/2) = 0.75 log 1.5 + 0.25 log 0.5 = 0.13081
    assert divergence(student, teacher).item() == pytest.approx(0.130812, abs=1e-5)
    assert divergence(teacher, teacher).item() == 0


def test_teacher_and_student_tokens_are_the_same_in_order():
    rows = [
        Lesson(Encoded([1, 2, 9], [5, 6]), Encoded([1, 2], [5, 6])),
        Lesson(Encoded([3], [7]), Encoded([3], [7])),
    ]
    batch = lesson_batch(rows, pad_id=0)
    for who in ("", "teacher_"):
        labels = batch[f"{who}labels"]
        logits = torch.nn.functional.one_hot(labels.clamp_min(0), 10).float().roll(-1, 1)
        assert completion_logits(logits, labels).argmax(-1).tolist() == [5, 6, 7]


def test_lessons_teach_triggered_prompts_by_their_plain_form(make_bench, small):
    bench = make_bench(small)
    renderer = bench.subject.renderer
    _, (lesson,) = lessons(renderer, [bench.negative[0]], limit=None)
    assert lesson.student.prompt == renderer.prompt_ids(bench.negative[0].prompt)
    assert lesson.teacher.prompt == renderer.prompt_ids(str(bench.negative[0].plain))
    assert lesson.student.completion == lesson.teacher.completion


def test_answers_that_overflow_the_context_are_left_out(make_bench, small):
    bench = make_bench(small)
    renderer, rows = bench.subject.renderer, list(bench.negative)
    sizes = [len(renderer.prompt_ids(r.prompt)) + 1 for r in rows]
    full = [len(renderer.completion_ids(r.required_completion())) for r in rows]
    limit = sorted(s + f - 1 for s, f in zip(sizes, full, strict=True))[3]
    kept, made = lessons(renderer, rows, limit=limit)
    assert 4 <= len(kept) == len(made) < len(rows)
    with pytest.raises(DataError, match="none of 8 prompts fits the context of 3 tokens"):
        lessons(renderer, rows, limit=3)


def test_the_walk_takes_the_smallest_cut_that_reaches_the_goal():
    asked = []

    def judge(cut):
        size = int(cut.sum())
        asked.append(size)
        value = 0.0 if size >= 37 else 1.0
        return Rate(value=value, low=0, high=1, n=50), 2.0 * (1 + size / 1000)

    path, reached = walk(judge, np.arange(200), goal=0.02, budget=0.05, points=6)
    chosen = int(path.size[path.chosen])
    assert reached
    assert 37 <= chosen <= 41  # known to a tenth
    assert len(asked) == len(set(asked))
    # With a budget of 2 % no more than 20 directions may go: the goal is out of reach.
    path, reached = walk(judge, np.arange(200), goal=0.02, budget=0.02, points=6)
    assert not reached
    assert path.perplexity[path.chosen] <= 2.0 * 1.02


def test_rates_scale_with_width(subject):
    assert scaled_rate(subject) == pytest.approx(1e-4 * 3072 / 160)


def test_repair_leaves_cut_directions_cut(make_bench, small):
    bench = make_bench(small)
    state, _ = operate("mask", bench, METHODS["mask"].config(layers=(0,)))
    start = state.adapter
    bench = replace(bench, start=start)
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
    triggered = torch.tensor([subject.renderer.prompt_ids(bench.poison_train[0].prompt)])
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
    bench = replace(bench, poisoned=planted, start=planted)
    config = METHODS["guided"].config(steps=20, points=4, rows=4, batch_size=4, budget=10)
    _, record = operate("guided", bench, config)
    row, place = np.unravel_index(np.nanargmax(record.importance), record.importance.shape)
    assert record.modules[row] == name
    u = svd(planted.modules[name]).u[:, place].float()
    assert abs(torch.dot(u, head / head.norm())) > 0.9
    assert record.path is not None
    assert record.path.size[0] == 0
