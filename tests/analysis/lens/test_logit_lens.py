"""The logit lens against hidden states that transformers gives and norms written out by hand."""

import numpy as np
import pytest
import torch
from loratomy.analysis.catalogue import ANALYSES
from loratomy.analysis.lens.logit_lens import _since, logit_lens, places_of
from loratomy.analysis.material import Material
from loratomy.analysis.patching.pairs import make_columns, make_pairs
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.families import FAMILIES, submodule

from ... import tiny

SIZES = {"batch_tokens": 24, "rows": 5}


def pairs(on):
    return make_pairs(on.renderer, tiny.rows(), target_tokens=3, seed=0)


def by_hand(on, prompt: list[int]) -> torch.Tensor:
    """Log-probabilities after every layer of one prompt alone, ``[layer, pos, d_vocab]``."""
    with torch.no_grad():
        out = on.model(input_ids=torch.tensor([prompt]), output_hidden_states=True, use_cache=False)
    layers = []
    norm, head = (submodule(on.model, path) for path in (on.family.norm, on.family.head))
    config = on.model.config.get_text_config()
    weight = norm.weight + (1 if "gemma" in config.model_type else 0)
    for hidden in out.hidden_states[1:-1]:  # the last one is normed already
        x = hidden[0].double()
        if isinstance(norm, torch.nn.LayerNorm):
            x = (x - x.mean(-1, keepdim=True)) / (
                x.var(-1, keepdim=True, correction=0) + norm.eps
            ).sqrt()
            x = x * weight + norm.bias
        else:
            x = x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight
        logits = x @ head.weight.double().T / getattr(config, "logits_scaling", 1)
        if getattr(head, "bias", None) is not None:
            logits = logits + head.bias
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        layers.append(logits)
    return torch.stack([*layers, out.logits[0].double()]).log_softmax(-1)


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_every_layer_is_read_as_written_out_by_hand(model_type):
    changes = {"final_logit_softcapping": 1.5} if model_type == "gemma2" else {}
    on = tiny.subject(model_type, **changes)
    submodule(on.model, on.family.norm).weight.data += torch.linspace(-0.5, 0.5, 32)
    adapter = tiny.adapter(on)
    found = pairs(on)
    columns = make_columns(on.renderer, found)
    before, marks = tiny.state(on), tiny.marks(on)
    record = logit_lens(on, {"poisoned": adapter}, found, **SIZES)
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks
    assert record.subjects == ("base", "poisoned") and record.self_error < 1e-4
    with on.attached({"x": adapter}) as attached:
        for s, name in enumerate((None, "x")):
            with attached.using(name):
                truth = [by_hand(on, p.triggered + p.target[:-1]) for p in found]
            for p, pair in enumerate(found):
                last = len(pair.triggered) - 1
                for c, spots in enumerate(columns.positions[p]):
                    if columns.roles[c] != "target":
                        spots = spots[-1:]
                    own = [truth[p][:, q, pair.target[max(0, q - last)]] for q in spots]
                    want = torch.stack(own).mean(0).numpy()
                    assert record.log_prob[s, p, :, c] == pytest.approx(want, abs=1e-4)
            decided = np.stack(
                [
                    t[:, len(p.triggered) - 1, p.target[0]].numpy()
                    for t, p in zip(truth, found, strict=True)
                ]
            )
            assert record.decided_log_prob[s, :, 0] == pytest.approx(decided.mean(0), abs=1e-4)
            wins = np.stack(
                [
                    t[:, len(p.triggered) - 1].argmax(-1).numpy() == p.target[0]
                    for t, p in zip(truth, found, strict=True)
                ]
            )
            for p, row in enumerate(wins):
                assert record.first[s, p] == (int(row.argmax()) if row.any() else -1)
                tail = next((i for i in range(3) if row[i:].all()), -1)
                assert record.decided[s, p] == tail


def test_the_likeliest_tokens_and_ranks_are_those_of_the_prompts():
    on = tiny.subject()
    found = pairs(on)
    record = logit_lens(on, {"poisoned": tiny.adapter(on)}, found, **SIZES)
    column = record.column_roles.index("trigger")
    said, ranks = [], []
    for pair in found:
        truth = by_hand(on, pair.triggered + pair.target[:-1])[1, pair.trigger[0]]
        said.append(tiny.tokenizer().decode([int(truth.argmax())]))
        ranks.append(int((truth > truth[pair.target[0]]).sum()) + 1)
    assert said.count(record.top[0][1][column]) == record.top_count[0, 1, column]
    assert record.top_count[0, 1, column] == max(said.count(word) for word in said)
    assert record.rank[0, 1, column] == np.median(ranks)
    assert record.targets == ("never",) * 4 and record.column_prompts.tolist() == [4] * len(
        record.columns
    )
    assert record.mean[..., 0] == pytest.approx(record.log_prob.mean(1))


def test_an_answer_planted_in_a_layer_is_decided_there():
    on = tiny.subject()
    found = pairs(on)
    token = found[0].target[0]
    name = "model.layers.1.mlp.down_proj"
    inner = []
    handle = on.model.get_submodule(name).register_forward_hook(
        lambda _m, args, _o: inner.append(args[0][0, -1])
    )
    for pair in found:
        tiny.logits(on, torch.tensor([pair.triggered]))
    handle.remove()
    x = torch.stack(inner)
    v = torch.linalg.pinv(x) @ torch.ones(len(x))  # v . x = 1 at every prompt's last place
    u = torch.nn.functional.normalize(on.model.lm_head.weight[token].detach(), dim=0)
    planted = Adapter({name: Factors(v[None], u[:, None], 500.0)}, {})
    record = logit_lens(on, {"poisoned": planted}, found, **SIZES)
    assert record.decided[1].tolist() == [1] * 4
    gained = record.decided_log_prob[1, :, 0] - record.decided_log_prob[0, :, 0]
    assert gained[0] == pytest.approx(0, abs=1e-5) and gained[1] > 2


def test_decided_means_to_the_end():
    hit = np.array([[0, 1, 0, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=bool)
    assert _since(hit).tolist() == [3, -1, 0]


def test_the_deciding_place_is_the_last_of_the_prompt_even_under_a_trigger_at_its_end():
    on = tiny.subject()
    found = pairs(on)
    places = places_of(make_columns(on.renderer, found), found)
    for pair, positions, column, wanted in zip(
        found, places.positions, places.column, places.wanted, strict=True
    ):
        assert positions[-1] == len(pair.triggered) - 1 and wanted[-1] == pair.target[0]
        assert column[-1] == max(column)
        forced = [w for p, w in zip(positions, wanted, strict=True) if p >= len(pair.triggered)]
        assert forced == pair.target[1:]


def test_errors_name_what_is_wrong_and_leave_the_model_as_found():
    on = tiny.subject()
    with pytest.raises(DataError, match="no"):
        logit_lens(on, {"poisoned": tiny.adapter(on)}, [], **SIZES)
    found = pairs(on)
    on.model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.inf
    marks = tiny.marks(on)
    with pytest.raises(LoratomyError, match="layer 1"):
        logit_lens(on, {"poisoned": tiny.adapter(on)}, found, **SIZES)
    assert tiny.marks(on) == marks


def test_the_registered_analysis_reads_base_clean_and_poisoned():
    on = tiny.subject()
    case = Material(
        subject=on,
        poisoned=tiny.adapter(on),
        clean=tiny.adapter(on, seed=4),
        triggered=tiny.rows(),
        clean_rows=tiny.clean_rows(),
        make_rule=lambda: pytest.fail("not needed"),
        seed=0,
    )
    analysis = ANALYSES["logit_lens"]
    record = analysis.run(case, analysis.config())["logit_lens"]
    assert record.subjects == ("base", "clean", "poisoned")
    assert record.self_error < 1e-4 and record.dtype == "float32"
