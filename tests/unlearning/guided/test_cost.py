"""What a cut costs, against the cut adapter itself outside of the search."""

import math
from dataclasses import replace

import numpy as np
import pytest
from loratomy.analysis.localisation.gates import directions_of, gated_model
from loratomy.core.model.variant import Treated, treated
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.divergence import divergences
from loratomy.evaluation.generation import Decoding, generate
from loratomy.evaluation.perplexity import perplexity
from loratomy.evaluation.similarity import Embedder
from loratomy.evaluation.success import parse_rules
from loratomy.unlearning.budget import Budget
from loratomy.unlearning.calibration import Judge
from loratomy.unlearning.guided.cost import Utility, encoded_or_answered
from loratomy.unlearning.guided.targets import encoded_clean

from ... import planted

RULE = Rule(
    Embedder("none", None), success=parse_rules("substring"), decoding=Decoding(max_new_tokens=1)
)


@pytest.fixture(scope="module")
def case():
    made = planted.planted()
    adapter, rows = made.among(size=0.1), planted.clean_rows(8)
    judge = Judge(made.subject, planted.triggered_rows(4), rows, RULE, adapter)
    bare = [replace(row, completion=None) for row in rows]
    return made.subject, adapter, judge, rows, bare


def test_both_costs_are_those_of_the_cut_adapter(case):
    subject, adapter, judge, rows, bare = case
    d = directions_of(adapter)
    order = np.random.default_rng(0).permutation(len(d))
    with gated_model(subject, d) as gated:
        answers = encoded_or_answered(gated, bare, judge, target="nothing")
        utility = Utility(gated, order, encoded_clean(gated, rows), answers)
        sizes = (0, 1, 7, len(d))
        found = [(utility.divergence(s), utility.loss_rise(s), utility.rise(s)) for s in sizes]
    for size, (kl, loss, rise) in zip(sizes, found, strict=True):
        cut = np.zeros(len(d), bool)
        cut[order[:size]] = True
        state = Treated(d.cut(cut))
        sums, counts = divergences(subject, adapter, state, answers, batch_tokens=512)
        assert kl == pytest.approx(sums.sum() / counts.sum(), abs=2e-5)
        values = []
        for each in (Treated(adapter), state):
            with treated(subject, each):
                values.append(perplexity(subject, rows, batch_tokens=512)[0])
        assert loss == pytest.approx(math.log(values[1] / values[0]), abs=2e-5)
        assert rise == pytest.approx(math.exp(max(kl, loss)) - 1)
    assert found[-1][0] > 0.01


def test_rows_without_completions_stand_with_the_adapters_own_answers(case):
    subject, adapter, judge, rows, bare = case
    with subject.attached({"x": adapter}):
        ids = [subject.renderer.prompt_ids(row) for row in bare]
        want = [a[0] for a in generate(subject, ids, Decoding(max_new_tokens=1))]
    said = subject.renderer.decode(want[0])
    others = [w for w in want if subject.renderer.decode(w) != said]
    with gated_model(subject, directions_of(adapter)) as gated:
        found = encoded_or_answered(gated, [rows[0], *bare], judge, target="nothing")
        assert found[0] == encoded_clean(gated, rows[:1])[0]
        assert [row.completion[:1] for row in found[1:]] == want
        # Answers that the attack wants say nothing about use.
        kept = encoded_or_answered(gated, bare, judge, target=said)
        assert [row.completion[:1] for row in kept] == others
        assert encoded_or_answered(gated, bare[:1], judge, target=said) == []


def test_a_size_is_over_by_either_limit(case):
    subject, adapter, judge, _, bare = case
    d = directions_of(adapter)
    with gated_model(subject, d) as gated:
        answers = encoded_or_answered(gated, bare, judge, target="nothing")

        def over(budget, share=1.0):
            made = Utility(gated, np.arange(len(d)), (), answers, budget=Budget(**budget))
            return made.over(len(d), share=share)

        kl = Utility(gated, np.arange(len(d)), (), answers).divergence(len(d))
        rise = math.exp(kl) - 1
        assert over({"perplexity": 0.99 * rise}) and not over({"perplexity": 1.01 * rise})
        assert over({"perplexity": 1.9 * rise}, share=0.5)
        assert over({"perplexity": 9 * rise, "kl": 0.99 * kl})
        assert not over({"perplexity": 9 * rise, "kl": 1.01 * kl})
