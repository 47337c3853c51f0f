"""Numbers by hand and by scipy, calibration of p, planted agreement and disagreement."""

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
from loratomy.analysis.across.across import across, chance_to_meet
from loratomy.analysis.across.correlation import (
    at_common_depths,
    corrected,
    ranks,
    shuffled_p,
    smooth_p,
)
from loratomy.analysis.across.profiles import landmark_of, profile, profiles
from loratomy.core.errors import DataError
from loratomy.core.records.across import Agreement
from loratomy.core.records.activations import Consistency, Probes, TriggerAttention
from loratomy.core.records.effectiveness import Effectiveness, Intervention
from loratomy.core.records.lens import LogitLens
from loratomy.core.stats import wilson
from scipy.fft import dct, idct
from scipy.stats import rankdata, spearmanr

from ... import across_runs as make

NAN = np.nan


def line(values, **changes):
    """A profile of these values, without intervals."""
    table = np.column_stack([values, np.full((len(values), 2), NAN)])
    words = {"group": "g", "question": "q", "title": "t", "unit": "u", "measure": "", "n": 0}
    return profile("key", values=table, floor=NAN, undefined="", **(words | changes))


def of(run, key):
    return next(p for p in run.profiles if p.key == key)


# --- common depth ------------------------------------------------------------------------------


def test_the_finer_run_is_interpolated_at_the_layers_of_the_coarser():
    # 2 layers stand at 0.25 and 0.75; 4 at 0.125, 0.375, 0.625, 0.875.
    # at 0.25: half way from 0 to 1; at 0.75: half way from 2 to 4
    two, four = line(np.array([7.0, 5.0])), line(np.array([0.0, 1.0, 2.0, 4.0]))
    assert np.allclose(at_common_depths(two, four), [[7, 5], [0.5, 3]])
    assert np.allclose(at_common_depths(four, two), [[0.5, 3], [7, 5]])


def test_nothing_is_extrapolated_nor_bridged():
    # 4 against 3 layers (1/6, 1/2, 5/6): all inside 0.125 .. 0.875
    three, four = line(np.arange(3.0)), line(np.array([0.0, NAN, 2.0, 3.0]))
    x, y = at_common_depths(three, four)
    assert x.tolist() == [2] and np.allclose(y, 2 + (5 / 6 - 0.625) / 0.25)
    # what enters a layer (0, 1/3, 2/3) has a point before the first middle of four (0.125)
    entering = line(np.arange(3.0), shift=0.0)
    x, y = at_common_depths(entering, line(np.arange(4.0)))
    assert x.tolist() == [1, 2] and np.allclose(y, [(1 / 3 - 0.125) * 4, (2 / 3 - 0.125) * 4])


def test_ranks_and_correlation_are_those_of_scipy():
    values = np.array([3.0, 1, 3, 2, 1, 1, 9])
    assert np.allclose(ranks(values), rankdata(values) - 4)
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 9))
    a, b = ranks(one), ranks(two)
    rho = a @ b / np.sqrt((a @ a) * (b @ b))
    assert rho == pytest.approx(spearmanr(one, two).statistic)


# --- p -----------------------------------------------------------------------------------------


def test_smooth_p_is_the_share_of_all_sign_patterns_of_the_cosine_components():
    a, b = ranks(np.array([1.0, 3, 2, 5, 4])), ranks(np.array([2.0, 1, 4, 3, 5]))
    parts = dct(b, type=2, norm="ortho")
    assert parts[0] == pytest.approx(0)  # the mean
    made = [idct(parts * [1, *signs], type=2, norm="ortho") for signs in product((1, -1), repeat=4)]
    hits = [abs(a @ other) >= abs(a @ b) - 1e-9 for other in made]
    assert smooth_p(a, b) == pytest.approx(np.mean(hits))
    # of 3! orders of three ranks two give a magnitude of 2: 1 2 3 and 3 2 1
    third = np.array([-1.0, 0, 1])
    assert shuffled_p(third, third) == pytest.approx(2 / 6)


def test_unrelated_smooth_profiles_are_rarely_called_alike():
    rng = np.random.default_rng(0)
    depth = (np.arange(12) + 0.5) / 12
    near = np.exp(-((depth[:, None] - depth) ** 2) / (2 * 0.2**2)) + 1e-8 * np.eye(12)
    root = np.linalg.cholesky(near)
    pairs = [[ranks(root @ rng.normal(size=12)) for _ in "ab"] for _ in range(250)]
    smooth = np.mean([smooth_p(a, b) <= 0.05 for a, b in pairs])
    free = np.mean([shuffled_p(a, b) <= 0.05 for a, b in pairs[:100]])
    assert smooth <= 0.09  # 0.05 + 3 standard errors
    assert free >= 0.2  # why shuffling layers does not do


def test_a_shared_rough_shape_is_found_by_sampling_too():
    rng = np.random.default_rng(1)
    a = rng.normal(size=24)
    assert smooth_p(ranks(a), ranks(a + 0.2 * rng.normal(size=24))) <= 0.001


def test_q_is_that_of_benjamini_and_hochberg():
    item = Agreement(key="k", first="a", second="b", n=8, rho=0.5, p=0.0, p_free=0.0, q=NAN,
                     undefined="")  # fmt: skip
    items = [replace(item, p=p) for p in (0.01, 0.04, NAN, 0.03)]
    # sorted 0.01, 0.03, 0.04 of 3: 0.03, 0.045 -> 0.04, 0.04
    assert np.allclose([a.q for a in corrected(items)], [0.03, 0.04, NAN, 0.04], equal_nan=True)


# --- landmarks ---------------------------------------------------------------------------------


def test_the_band_of_a_peak_holds_the_layers_that_reach_its_interval():
    depth = (np.arange(4) + 0.5) / 4
    values = np.array([[1, 0, 2.0], [4, 3, 5], [3, 2.5, 3.2], [0, -1, 1]])
    found = landmark_of(depth, values, floor=0.0, kind="peak", draws=None)
    # layers 1 and 2 reach 3; they cover 0.25 to 0.75
    assert (found.depth, found.low, found.high) == (0.375, 0.25, 0.75)
    flat = values - [3.5, 3.5, 3.5]
    assert np.isnan(landmark_of(depth, flat, floor=0.0, kind="peak", draws=None).depth)


def test_rise_and_fall_are_where_half_of_the_maximum_is():
    depth = np.arange(5) / 5
    up = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    table = np.column_stack([up, up - 0.01, up + 0.01])
    draws = np.array([up] * 39 + [[0, 0.6, 0.7, 0.9, 1]])  # 1 of 40 rises a layer earlier
    rise = landmark_of(depth, table, floor=0.0, kind="rise", draws=draws)
    # 0.4, its layer half covers 0.3 to 0.5; 2.5 % of the draws say 0.2
    assert np.allclose([rise.depth, rise.low, rise.high], [0.4, 0.1, 0.5])
    fall = landmark_of(depth, table[::-1], floor=0.0, kind="fall", draws=draws[:39, ::-1])
    assert np.allclose([fall.depth, fall.low, fall.high], [0.4, 0.3, 0.5])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_patching_profile_takes_the_largest_column_of_a_role(direction):
    record = make.patching_map(10, 0.4, direction=direction)
    found = {p.key: p for p in profiles(record, 10)}
    stream = found[f"patching-prompt-{direction}-resid-pre-trigger"]
    assert np.array_equal(stream.value, record.recovery[0][:, 1:3].max(1))
    assert stream.depth[0] == 0 and stream.depth[-1] == 0.9
    # the logistic hand-over has its half at 0.4: the last layer that still has half of it
    assert stream.landmark.depth == pytest.approx(0.4, abs=0.1)
    assert stream.landmark.low < 0.4 < stream.landmark.high
    peak = found[f"patching-prompt-{direction}-attn-out-last"].landmark
    assert 0.3 <= peak.low <= peak.depth <= peak.high <= 0.5
    nothing = found[f"patching-prompt-{direction}-attn-out-trigger"].landmark
    assert not nothing.high - nothing.low <= 0.5  # noise: no place, or anywhere


def test_shares_of_weights_do_not_depend_on_the_number_of_layers():
    # squared norms 1 and 3 of two layers: shares 0.25 and 0.75, times 2
    record = make.difference(2)
    two = replace(record, difference_norm=np.sqrt([1.0, 3.0]))
    assert np.allclose(profiles(two, 2)[0].value, [0.5, 1.5])
    # a base of four layers, two of them without modules: exactly none there
    assert np.allclose(profiles(two, 4)[0].value, [1, 3, 0, 0])
    # a module outside the layers keeps its part of the whole: 3 of 4 are outside
    out = replace(two, layers=np.array([0, -1]))
    assert np.allclose(profiles(out, 2)[0].value, [0.5, 0])
    with pytest.raises(DataError, match="layer 1, but the base has 1"):
        profiles(two, 1)


def blank(kind, /, **given):
    """A record with these fields and nothing in the others."""
    return kind(**{f.name: given.get(f.name) for f in fields(kind)})


def test_activations_are_read_at_the_right_subject_place_and_interval():
    rng = np.random.default_rng(0)
    who = {"subjects": ("base", "clean", "poisoned"), "n_prompts": 9}
    record = blank(
        Probes, **who, places=("last", "mean"), negatives=("untriggered", "stand-in", "both"),
        auroc=rng.random((3, 2, 3, 4, 3)), gain=rng.random((2, 2, 4, 3)),
    )  # fmt: skip
    found = {p.key: p for p in profiles(record, 4)}
    assert np.array_equal(found["probes-auroc-mean"].value, record.auroc[2, 1, 2, :, 0])
    assert np.array_equal(found["probes-gain-last"].high, record.gain[1, 0, :, 2])
    assert found["probes-auroc-last"].depth.tolist() == [0.25, 0.5, 0.75, 1]  # behind each layer
    assert found["probes-auroc-last"].floor == 0.5

    record = blank(
        Consistency, **who, conditions=("triggered", "untriggered", "stand-in"),
        difference=rng.random((3, 2, 4, 3)),
    )  # fmt: skip
    turned = profiles(record, 4)[1]
    assert turned.key == "consistency-stand-in"
    assert np.array_equal(turned.low, record.difference[2, 1, :, 1])

    difference = np.zeros((2, 1, 4, 2, 3))  # adapter, query, layer, head
    difference[1, 0, :, 1] = [0.3, 0.2, 0.4]
    record = blank(TriggerAttention, **who, queries=("last",), difference=difference)
    assert profiles(record, 4)[0].value.tolist() == [0.3] * 4
    with pytest.raises(DataError, match="attention of 4 layers, but the base has 5"):
        profiles(record, 5)


def test_the_lens_rises_where_half_of_the_probability_is():
    log_prob = np.full((1, 6, 4, 2), NAN)
    log_prob[0, :, :, 1] = np.log([0.01, 0.1, 0.6, 0.9])
    mean = np.repeat(log_prob[:, 0, :, 1, None], 3, -1)
    record = blank(
        LogitLens, subjects=("poisoned",), column_roles=("trigger", "last"), log_prob=log_prob,
        decided_log_prob=mean, prompts=("p",) * 6,
    )  # fmt: skip
    (found,) = profiles(record, 4)
    # behind layer 2 of 4: 0.6 of 0.9; half a layer to each side
    mark = found.landmark
    assert np.allclose([mark.depth, mark.low, mark.high], [0.75, 0.625, 0.875])


def test_effectiveness_is_the_share_of_answers_without_the_target():
    rate = wilson(19, 20)
    off = blank(Intervention, kind="off", site="", malicious=np.array([[0.2, 0.1, 0.4]]))
    record = blank(
        Effectiveness, layers=np.array([2]), prompts=("p",) * 20, unpatched=rate, rule="similar",
        decoding="greedy", interventions=(off,),
    )  # fmt: skip
    (found,) = profiles(record, 4)
    assert np.isnan(found.value).tolist() == [True, True, False, True]
    shown = [found.value[2], found.low[2], found.high[2], found.floor]
    assert np.allclose(shown, [0.8, 0.6, 0.9, 1 - rate.low])
    assert (found.key, found.measure) == ("effectiveness-off", "similar; greedy")


def test_chance_to_meet_is_the_area_of_meeting_starts():
    # starts uniform in 0 .. 0.8; apart by more than 0.2 in (0.6 / 0.8)² of cases
    assert chance_to_meet([0.2, 0.2]) == pytest.approx(1 - (0.6 / 0.8) ** 2, abs=0.01)


# --- runs --------------------------------------------------------------------------------------


def test_planted_places_are_called_equal_and_apart():
    runs = [
        make.source("small", make.everything(8, 0.4)),
        make.source("large", make.everything(28, 0.42)),
        make.source("late", make.everything(16, 0.8)),
    ]
    record = across(runs)
    (effect,) = [f for f in record.findings if f.startswith("Effect of removing")]
    assert "in small [0.58] and large [0.6], but between depth 0.75 and" in effect
    alike = {(a.key, a.first, a.second): a for a in record.agreements}
    two = alike["effect", "small", "large"]
    assert two.n == 8 and two.rho > 0.9
    assert alike["effect", "large", "late"].n == 16
    assert [run.layers for run in record.runs] == [8, 28, 16] and record.notes == ()

    same = across(runs[:2])
    (effect,) = [f for f in same.findings if f.startswith("Effect of removing")]
    assert "in small [0.58] and large [0.6] (in brackets: its largest share of" in effect


def test_nothing_is_said_of_wide_bands_and_unlike_shapes():
    rng = np.random.default_rng(5)
    runs = []
    for name, layers in (("a", 8), ("b", 12)):
        flat = make.where(layers, spread=1.0)
        effect = flat.layer_effect.copy()
        effect[:, 0] = rng.uniform(1, 2, layers)
        effect[:, 1:] = effect[:, :1] + [-0.9, 0.9]
        runs.append(make.source(name, {"where": (replace(flat, layer_effect=effect),)}))
    assert across(runs).findings == ()


def test_bands_that_meet_anywhere_and_places_that_do_next_to_nothing_are_no_agreement():
    # bands of 3 of 8 layers: a start anywhere in 0 .. 0.625 is within 0.375 of another more often
    # than not, 1 - (0.25 / 0.625)² = 0.84
    wide = make.where(8, spread=0.21)
    runs = [make.source(name, {"where": (wide,)}) for name in "ab"]
    record = across(runs)
    mark = of(record.runs[0], "effect").landmark
    assert mark.high - mark.low == 0.375 and not [f for f in record.findings if "depth" in f]
    # one layer apart, each for sure: bands that only touch are neither equal nor apart
    near = [make.source(n, {"where": (make.where(8, m),)}) for n, m in (("a", 0.3), ("b", 0.45))]
    assert not [f for f in across(near).findings if "depth" in f]
    # 0.06 nats of 10 are 0.6 %, however narrow the interval
    tiny = replace(wide, layer_effect=make.where(8, spread=0.001).layer_effect / 100)
    (found,) = profiles(tiny, 8)
    assert np.isnan(found.landmark.depth) and found.landmark.how == "nothing stands out"


def test_what_cannot_be_compared_is_named():
    one = make.everything(8)
    two = make.everything(12) | {
        "patching": (make.patching_map(12, metric="KL divergence, nats"),),
        "where": (make.where(12, whole=0.3),),
    }
    del two["difference"]
    record = across([make.source("one", one), make.source("two", two)])
    assert {p.group for run in record.runs for p in run.profiles} == {"weights"}
    notes = "\n".join(record.notes)
    assert "two lacks difference: loratomy probe runs/two makes what it allows" in notes
    assert "measured as KL divergence, nats, elsewhere as log-probability" in notes
    assert "the whole adapter's effect is 0.30 nats" in notes
    assert "one alone has weight change: share of ‖dW poisoned − dW clean‖²" in notes
    assert record.runs[1].missing == ("difference",)


def test_other_numbers_of_target_tokens_are_other_measures():
    where = {n: {"where": (make.where(n),), "spectra": (make.spectra(n),)} for n in (8, 12)}
    runs = [make.source("a", where[8], tokens=3), make.source("b", where[12], tokens=5)]
    record = across(runs)
    assert {p.group for run in record.runs for p in run.profiles} == {"weights"}
    assert "first 5 tokens, elsewhere as" in "\n".join(record.notes)


def test_a_model_of_one_layer_stands_in_the_middle_and_correlates_with_nothing():
    record = across(
        [make.source("one", make.everything(1)), make.source("two", make.everything(8))]
    )
    assert of(record.runs[0], "effect").depth.tolist() == [0.5]
    assert {a.undefined for a in record.agreements if a.key == "effect"} == {
        "points at common depth: 1, too few"
    }
    assert all(np.isnan(a.rho) for a in record.agreements)
    assert not any(" in one" in finding for finding in record.findings)


def test_the_layers_of_an_adapter_are_not_taken_for_those_of_the_base():
    part = {"spectra": (make.spectra(6),)}
    whole = make.source("whole", {"spectra": (make.spectra(12),)}, layers=12)
    known = across([make.source("part", part, layers=12), whole])
    assert of(known.runs[0], "weights-poisoned-share").value[6:].tolist() == [0] * 6
    guessed = across([make.source("part", part), whole])
    assert guessed.runs[0].layers == 6 and "number of layers is taken as 6" in guessed.notes[0]


def test_runs_without_a_common_profile_are_an_error_with_the_remedy():
    one = make.source("one", {"spectra": (make.spectra(4),)})
    two = make.source("two", {"where": (make.where(4),)})
    with pytest.raises(DataError, match=r"one has spectra; two has where.*loratomy probe runs/two"):
        across([one, two])
    with pytest.raises(DataError, match="two different runs or more"):
        across([one])
    with pytest.raises(DataError, match="x: its records and its base have 4 and 9 layers"):
        maps = (make.patching_map(4), make.patching_map(4))
        across([one, replace(make.source("x", {"patching": maps}), layers=9), two])
