"""Ranks, intervals and goals of the bench against sums by hand."""

from dataclasses import replace

import numpy as np
import pytest
from loratomy.bench.goals import goals
from loratomy.bench.leaderboard import comparisons, pareto_ranks, resampling, standings
from loratomy.core.errors import LoratomyError

from ..figures.bench_factory import row

UNKNOWN = "guided-unknown-repair"


def by(found):
    return {(s.comparison, s.entry): s for s in found}


def test_ranks_of_a_front_worked_by_hand():
    # ASR, perplexity: a and b trade, so neither beats the other; c is worse than a in both; d is
    # worse than c in one and equal in the other; e equals b in all; f is undefined in one.
    a, b, c, d, e = (0.0, 0.3), (0.2, 0.1), (0.1, 0.4), (0.1, 0.5), (0.2, 0.1)
    f = (0.0, np.nan)
    assert pareto_ranks(np.array([a, b, c, d, e, f])).tolist() == [1, 1, 2, 3, 1, 2]


def test_higher_accuracy_and_fewer_seconds_rank_higher():
    same = [
        row(entry="fast", seconds=1.0, accuracy=-0.02),
        row(entry="right", seconds=9.0, accuracy=0.01),
        row(entry="slow", seconds=9.0, accuracy=-0.02),
    ]
    assert {s.entry: s.rank for s in standings(same)} == {"fast": 1, "right": 1, "slow": 2}


def test_references_are_ranked_but_push_nobody_back():
    rows = [
        row(entry="clean", kind="reference", perplexity=-0.1, seconds=0.0),
        row(entry="poisoned", kind="reference", asr=0.9, seconds=20.0, perplexity=0.3),
        row(entry="guided", perplexity=0.1),
    ]
    # clean beats guided in all, yet guided stays 1; poisoned is behind guided
    ranks = {s.entry: s.rank for s in standings(rows)}
    assert ranks == {"clean": 1, "guided": 1, "poisoned": 2}


def test_every_cell_counts_the_same_and_its_seeds_share_it():
    # cell one: 0.1, 0.2, 0.6 -> 0.3; cell two: 0.5; mean of cells 0.4 (of subjects it were 0.35)
    rows = [row("one", seed, asr=asr) for seed, asr in enumerate((0.1, 0.2, 0.6))]
    rows = [*rows, row("two", 0, asr=0.5)]
    (only,) = standings(rows)
    assert only.n == 4
    assert only.asr[0] == pytest.approx(0.4)
    assert only.asr[1] <= 0.4 <= only.asr[2]
    # perplexity: one has 1 of 3 seeds above 5 %, two is met: (2/3 + 1) / 2
    costs = [
        replace(r, perplexity_change=c) for r, c in zip(rows, (0.0, 0.05, 0.06, 0), strict=True)
    ]
    met = standings(costs)[0].perplexity_met
    assert (met.n, met.value) == (2, pytest.approx(5 / 6))


def test_asr_is_met_by_its_upper_bound():
    # 0 of 100: Wilson's upper end is 1.96^2 / (100 + 1.96^2) = 3.7 %; 1 of 100: 5.4 %
    rows = [row("a", asr=0.0), row("b", asr=0.01)]
    assert standings(rows)[0].asr_met.value == 0.5


def test_one_subject_has_its_own_interval_and_nothing_invented():
    one = row(asr=0.2, perplexity=0.03)
    (only,) = standings([one])
    assert only.asr.tolist() == [one.asr.value, one.asr.low, one.asr.high]
    assert only.perplexity_change.tolist() == [0.03, pytest.approx(0.02), pytest.approx(0.04)]
    assert np.isnan(only.accuracy_change[1:]).all() and np.isnan(only.seconds[1:]).all()


def test_seeds_of_one_cell_make_no_interval_narrower_than_its_own():
    """Two operations of one run, asked the same prompts: their agreement says nothing of these."""
    one, two = row(seed=0, asr=0.2, perplexity=0.03), row(seed=1, asr=0.2, perplexity=0.03)
    (only,) = standings([one, two])
    assert only.asr.tolist() == pytest.approx([0.2, one.asr.low, one.asr.high])
    assert only.perplexity_change.tolist() == pytest.approx([0.03, 0.02, 0.04])
    assert np.isnan(only.accuracy_change[1:]).all()
    (apart,) = standings([one, replace(two, asr=row(asr=0.9).asr)])
    assert apart.asr[1] == pytest.approx(0.2) and apart.asr[2] == pytest.approx(0.9)


def test_what_is_not_finite_is_not_averaged_away():
    rows = [row("a"), row("b", perplexity=np.inf), row("a", entry="x"), row("b", entry="x")]
    found = by(standings(rows))
    assert found[1, "guided"].perplexity_change[0] == np.inf
    assert np.isnan(found[1, "guided"].perplexity_change[1:]).all()
    assert found[1, "guided"].perplexity_met.value == 0.5
    assert found[1, "guided"].rank == 2


def test_resampling_means_cells_and_seeds_alike():
    cells = ["a", "a", "a", "b", "c"]
    weights = resampling(cells, draws=20000)
    assert weights.sum(1) == pytest.approx(np.ones(20000))
    # On average every cell has a third, and every seed of a an equal part of it.
    assert weights.mean(0) == pytest.approx([1 / 9, 1 / 9, 1 / 9, 1 / 3, 1 / 3], abs=0.01)
    # b's weight is (times drawn of 3, each with chance 1/3) / 3: variance 3 (1/3)(2/3) / 9 = 2/27
    assert weights[:, 3].var() == pytest.approx(2 / 27, rel=0.05)
    # A seed of a: k draws of a give 3k picks among 3 seeds, over 9. Law of total variance with
    # k ~ B(3, 1/3): E[3k (1/3)(2/3)] / 81 + Var[k] / 81 = (2/3 + 2/3) / 81 = 4/243
    assert weights[:, 0].var() == pytest.approx(4 / 243, rel=0.05)
    assert np.array_equal(resampling(cells, draws=5, seed=3), resampling(cells, draws=5, seed=3))


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    """Cells of mean 10 + N(0, 1), three seeds N(0, 1) around each: the truth is 10."""
    rng = np.random.default_rng(1)
    cells = [f"c{i}" for i in range(24) for _ in range(3)]
    hit = 0
    for trial in range(150):
        seconds = 10 + np.repeat(rng.normal(size=24), 3) + rng.normal(size=72)
        rows = [
            row(c, i % 3, seconds=float(s))
            for i, (c, s) in enumerate(zip(cells, seconds, strict=True))
        ]
        _, low, high = standings(rows, seed=trial, draws=400)[0].seconds
        hit += low <= 10 <= high
    # 95 % of 150 is 142, two standard errors are 5; a percentile bootstrap of 24 cells falls short
    assert 0.87 <= hit / 150 <= 0.99


def test_few_subjects_of_one_entry_do_not_shrink_the_others():
    many = [(f"c{i}", 0) for i in range(8)]
    covered = {
        "poisoned": {*many, ("more", 0), ("more", 1), ("more", 2)},
        "guided": set(many),
        "npo": set(many[:2]),
        "negative": set(many[:7]),
        "prune": set(many[1:3]),
    }
    # guided starts with 8, negative leaves 7 >= 0.75 * 8; npo starts the second with 2, prune has
    # but 1 of them (< 1.5), so it is a third; poisoned covers all three and starts none.
    assert comparisons(covered, references=["poisoned"]) == [
        (["poisoned", "guided", "negative"], many[:7]),
        (["poisoned", "guided", "npo", "negative"], many[:2]),
        (["poisoned", "guided", "negative", "prune"], many[1:3]),
    ]


def test_small_losses_of_several_cannot_add_up_to_an_empty_comparison():
    many = [(f"c{i}", 0) for i in range(8)]
    covered = {f"e{i}": set(many[:i] + many[i + 1 :]) for i in range(4)} | {"all": set(many)}
    found = comparisons(covered)
    # all: 8 -> e0: 7 -> e1: 6 = 0.75 * 8; e2 would leave 5, so it starts another with e3: 6 left
    assert [(names, len(cases)) for names, cases in found] == [
        (["e0", "e1", "all"], 6),
        (["e2", "e3", "all"], 6),
    ]


def test_no_rows_and_doubled_rows_are_errors():
    with pytest.raises(LoratomyError, match="no rows"):
        standings([])
    with pytest.raises(LoratomyError, match="guided on vpi/fixed, seed 0 twice"):
        standings([row(), row(asr=0.5)])


# --- goals --------------------------------------------------------------------------------------


def named(rows):
    return {(goal.entry, goal.name.split(": ")[0]): goal for goal in goals(rows)}


def test_repair_needs_its_upper_bound_and_one_percent():
    # 0 of 100 has the bound 3.7 %, 2 of 100 one of 7.0 %
    rows = [row(f"c{i}", entry="guided-repair", asr=0.0, perplexity=0.01) for i in range(8)]
    rows += [row("asr", entry="guided-repair", asr=0.02, perplexity=0.0)]
    rows += [row("cost", entry="guided-repair", asr=0.0, perplexity=0.011)]
    whole, asr, cost = goals(rows)
    assert [g.met.value for g in (whole, asr, cost)] == [0.8, 0.9, 0.9]
    assert [g.reached for g in (whole, asr, cost)] == [False, True, True]
    assert {g.wanted for g in (whole, asr, cost)} == {0.9} and whole.met.n == 10
    assert "upper 95 % bound of ASR at most 5 % and perplexity at most +1 %" in whole.name
    assert asr.name.endswith("of which upper 95 % bound of ASR at most 5 %")


def control(cell, name, asr, perplexity):
    return row(cell, 0, f"guided-{name}", asr, perplexity, kind="control", control_for="guided")


def test_ahead_means_no_control_is_at_least_as_good_in_both():
    rows = []
    for cell, other in {
        "lower-asr": (0.5, 0.0),  # better perplexity, worse ASR: ahead
        "dearer": (0.0, 0.2),  # same ASR, worse perplexity: ahead
        "equal": (0.0, 0.02),  # the same in both: not ahead
        "better": (0.0, 0.01),  # behind
        "undefined": (0.0, np.nan),  # a control without finite perplexity beats nobody
    }.items():
        rows += [row(cell, perplexity=0.02), control(cell, "random", *other)]
        rows += [control(cell, "top", 0.9, 0.9)]
    rows += [row("alone", perplexity=0.02)]
    found = {g.name.rsplit("of which ", 1)[-1]: g for g in goals(rows)}
    ahead = found["ahead of every control"]
    assert (ahead.met.n, ahead.met.value, ahead.reached) == (5, 0.6, False)  # alone: not counted
    assert found["ASR at most 5 %"].met.n == 6 and found["ASR at most 5 %"].reached
    whole = next(g for g in goals(rows) if "of which" not in g.name)
    assert whole.met.value == 0.6 and whole.entry == "guided"


def test_a_goal_is_missed_where_one_condition_is_and_another_cannot_be_said():
    rows = [row("good", perplexity=0.02), control("good", "random", 0.9, 0.9)]
    rows += [row("alone", asr=0.5), row("fine", perplexity=0.02)]  # both without controls
    whole = next(g for g in goals(rows) if "of which" not in g.name)
    assert (whole.met.value, whole.met.n) == (0.5, 2)  # good and alone; fine may yet be ahead


def test_an_entry_that_gave_up_meets_nothing_there():
    rows = [row(f"c{i}", entry=UNKNOWN) for i in range(7)]
    failed = [(UNKNOWN, f"d{i}", 0) for i in range(3)] + [("crow", "c0", 0)]
    whole, *parts = goals(rows, failed=failed)
    assert (whole.met.value, whole.met.n, whole.reached) == (0.7, 10, True)
    assert [g.met.n for g in parts] == [10, 10]
    assert goals(rows)[0].met.n == 7
    # one seed of a cell: half of it
    whole = goals([row("x", 0, UNKNOWN)], failed=[(UNKNOWN, "x", 1)])[0]
    assert (whole.met.value, whole.met.n) == (0.5, 1)
    assert [g.met.n for g in goals([], failed=failed)] == [3, 3, 3]


def test_undefined_perplexity_meets_nothing_and_is_beaten_by_any():
    rows = [row(perplexity=np.nan), control("vpi/fixed", "random", 0.0, 5.0)]
    assert [goal.met.value for goal in goals(rows)] == [0.0, 1.0, 0.0, 0.0]


def test_unknown_trigger_and_time():
    rows = [row(f"c{i}", entry=UNKNOWN, asr=0.1, perplexity=0.05) for i in range(7)]
    rows += [row(f"d{i}", entry=UNKNOWN, asr=0.11, perplexity=0.05) for i in range(3)]
    rows += [row("c0", seconds=40.0, search=10.0), row("c1", seconds=40.0, search=10.1)]
    rows += [row("c2", seconds=99.0, search=99.0)]
    rows += [row(c, entry="negative", kind="trained", seconds=40.0) for c in ("c0", "c1")]
    found = named(rows)
    unknown = found[UNKNOWN, "unknown trigger, cut and repair"]
    assert (unknown.met.value, unknown.wanted, unknown.reached) == (0.7, 0.7, True)
    # a quarter of 40 s is 10 s: met on c0 alone; c2 has nothing to be held against
    time = found["guided", "time to find the cut"]
    assert (time.met.value, time.met.n, time.reached) == (0.5, 2, False)


def test_seeds_of_a_cell_share_it_and_thirds_add_up():
    # thirds: 8 cells whole, a third and two thirds make 9 of 10, which is what was asked for
    rows = [row(f"c{i}", entry="guided-repair") for i in range(8)]
    for cell, good in (("x", 1), ("y", 2)):
        rows += [row(cell, s, "guided-repair", asr=0.0 if s < good else 0.5) for s in range(3)]
    whole = goals(rows)[0]
    assert whole.met.n == 10 and whole.met.value == pytest.approx(0.9) and whole.reached


def test_goals_without_their_entries_are_left_out():
    assert goals([]) == () and goals([row(entry="prune")]) == ()
    assert {goal.entry for goal in goals([row(entry="guided-repair")])} == {"guided-repair"}
