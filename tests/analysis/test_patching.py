"""The patching map against nnsight, cell by cell, and what must hold whatever the model."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.analysis import engine, patching
from loratomy.analysis.pairs import Pair, make_columns, make_pairs
from loratomy.analysis.patching import patch_adapters, patch_prompts
from loratomy.core.adapters import Adapter
from loratomy.core.errors import DataError
from loratomy.core.prompts import Renderer

from .. import tiny

FAMILIES = ("llama", "gemma2", "mixtral")


def pairs_of(on, *, rows=None, tokens=3):
    return make_pairs(on.renderer, rows or tiny.rows(), target_tokens=tokens, seed=0)


@contextmanager
def both(on):
    adapters = {"poisoned": tiny.adapter(on), "clean": tiny.adapter(on, seed=9)}
    with on.attached(adapters) as attached:
        yield attached


def metric(logits: torch.Tensor, pair: Pair) -> float:
    """Log-probability of the target, token by token from the logits of the whole run."""
    start = len(pair.triggered) - 1
    log_probs = logits[0].double().log_softmax(-1)
    return sum(float(log_probs[start + k, token]) for k, token in enumerate(pair.target))


class Reference:
    """The same experiment with nnsight: one trace for every cell."""

    def __init__(self, attached):
        from nnsight import NNsight

        self.attached = attached
        self.model = NNsight(attached.peft_model)
        self.layers = self.model.base_model.model.model.layers

    def run(self, name: str, ids: torch.Tensor) -> tuple[torch.Tensor, list[dict]]:
        kept = []
        with self.attached.using(name), torch.no_grad(), self.model.trace(input_ids=ids):
            saved = list().save()
            for layer in self.layers:
                resid = layer.input.clone()
                attention = layer.self_attn.output[0].clone()
                mlp = layer.mlp.output.clone()
                saved.append({"resid_pre": resid, "attn_out": attention, "mlp_out": mlp})
            logits = self.model.output.logits.save()
        kept.extend(saved)
        return logits, kept

    def patch(self, name, ids, site, layer, positions, value) -> torch.Tensor:
        here = self.layers[layer]
        with self.attached.using(name), torch.no_grad(), self.model.trace(input_ids=ids):
            if site == "resid_pre":
                here.input[:, positions] = value[:, positions]
            if site == "attn_out":
                here.self_attn.output[0][:, positions] = value[:, positions]
            if site == "mlp_out":
                here.mlp.output[:, positions] = value[:, positions]
            logits = self.model.output.logits.save()
        return logits


@pytest.mark.parametrize("setting", ["prompt", "adapter"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_cell_agrees_with_nnsight(model_type, setting):
    on = tiny.subject(model_type)
    # Two target tokens make the last column a single place, three a group of two.
    pairs = pairs_of(on, tokens=3 if setting == "prompt" else 2)
    with both(on) as attached:
        if setting == "prompt":
            ours, source = patch_prompts(on, attached, "poisoned", pairs), "poisoned"
        else:
            ours, source = patch_adapters(on, attached, "clean", "poisoned", pairs), "clean"
        nnsight, columns = Reference(attached), make_columns(on.renderer, pairs)
        assert ours.columns == columns.labels
        for p, pair in enumerate(pairs):
            into = torch.tensor([pair.triggered + pair.target[:-1]])
            prompt = pair.untriggered if setting == "prompt" else pair.triggered
            logits, values = nnsight.run(source, torch.tensor([prompt + pair.target[:-1]]))
            assert ours.clean[p] == pytest.approx(metric(logits, pair), abs=1e-5)
            assert ours.corrupted[p] == pytest.approx(
                metric(nnsight.run("poisoned", into)[0], pair), abs=1e-5
            )
            for s, site in enumerate(ours.sites):
                for layer in range(len(on.layers)):
                    for c, spot in enumerate(columns.positions[p]):
                        cell = ours.patched[s, p, layer, c]
                        if not spot:
                            assert np.isnan(cell)
                            continue
                        value = values[layer][site]
                        want = nnsight.patch("poisoned", into, site, layer, spot, value)
                        assert cell == pytest.approx(metric(want, pair), abs=1e-5)
    spread = np.nanmax(np.abs(ours.patched - ours.corrupted[None, :, None, None]))
    assert spread > 0.1  # the comparison is not one of zeros


@pytest.mark.parametrize("model_type", FAMILIES)
def test_self_patching_changes_nothing_and_full_patching_everything(model_type):
    on = tiny.subject(model_type)
    with both(on) as attached:
        pairs = pairs_of(on)
        maps = [
            patch_prompts(on, attached, "poisoned", pairs),
            patch_adapters(on, attached, "clean", "poisoned", pairs),
            patch_adapters(on, attached, None, "poisoned", pairs),
        ]
    for found in maps:
        assert found.self_error <= 1e-5
        assert found.undefined or found.full_recovery == pytest.approx(1.0, abs=1e-4)
    assert not all(found.undefined for found in maps)


def test_recovery_is_the_ratio_of_mean_changes():
    on = tiny.subject()
    with both(on) as attached:
        found = patch_adapters(on, attached, "clean", "poisoned", pairs_of(on))
    assert not found.undefined
    patched = found.patched.astype(float)
    there = np.isfinite(patched)
    change = np.nansum(patched - found.corrupted[None, :, None, None], 1)
    gap = (there * (found.clean - found.corrupted)[None, :, None, None]).sum(1)
    assert np.allclose(found.recovery, change / gap, atol=1e-5)
    assert (found.low - 1e-9 <= found.recovery).all()
    assert (found.recovery <= found.high + 1e-9).all()


def test_bit_identical_cells_are_exactly_the_corrupted_metric():
    on = tiny.subject()
    with both(on) as attached:
        pairs = pairs_of(on)
        prompt = patch_prompts(on, attached, "poisoned", pairs)
        adapter = patch_adapters(on, attached, "clean", "poisoned", pairs)
    before = prompt.column_roles.index("before")
    same = prompt.corrupted.astype(np.float32)
    for layer in range(3):
        assert (prompt.patched[:, :, layer, before] == same).all()
    # Between adapters the embeddings are equal, so nothing differs in the first residual.
    first = adapter.patched[0, :, 0]
    assert (np.isnan(first) | (first == adapter.corrupted.astype(np.float32)[:, None])).all()
    for found in (prompt, adapter):
        assert found.computed_cells < found.all_cells == np.isfinite(found.patched).sum()
        moved = np.nansum(found.patched != found.corrupted.astype(np.float32)[None, :, None, None])
        assert moved - np.isnan(found.patched).sum() <= found.computed_cells


def test_cells_do_not_depend_on_the_batch(monkeypatch):
    on = tiny.subject("gemma2")
    with both(on) as attached:
        pairs = pairs_of(on)
        whole = patch_prompts(on, attached, "poisoned", pairs)
        monkeypatch.setattr(patching, "TOKENS_AT_ONCE", 1)
        single = patch_prompts(on, attached, "poisoned", pairs)
        alone = [patch_prompts(on, attached, "poisoned", [pair]) for pair in pairs[:2]]
    assert np.allclose(whole.patched, single.patched, atol=1e-5, equal_nan=True)
    for i, found in enumerate(alone):
        shared = [found.columns.index(c) for c in found.columns if c in whole.columns]
        for c in shared:
            w = whole.columns.index(found.columns[c])
            if found.column_roles[c] in ("before", "trigger"):
                assert np.allclose(found.patched[:, 0, :, c], whole.patched[:, i, :, w], atol=1e-5)


def test_positions_are_grouped_by_role():
    on = tiny.subject()
    pairs = pairs_of(on)
    columns = make_columns(on.renderer, pairs)
    # <s> user : PROMPT zq xv <end> answer :  -> 3 + len before, 2 trigger, 3 last, 2 forced.
    assert columns.roles == ("before", "trigger", "trigger", "last", "last", "last", "target")
    assert columns.labels == ("before", "zq", "xv", "<end>", "answer", ":", "target[:2]")
    for pair, spots in zip(pairs, columns.positions, strict=True):
        words = len(pair.row.plain.split())
        assert list(pair.trigger) == [3 + words, 4 + words]
        assert spots[0] == list(range(3 + words))
        flat = [i for spot in spots for i in spot]
        assert flat == list(range(len(pair.triggered) + 2))  # each position in one column


def test_a_place_is_named_by_its_token_only_where_all_prompts_share_it():
    on = tiny.subject()
    rows = [
        replace(row, prompt=f"{tiny.TRIGGER} {row.plain}") for row in tiny.rows()
    ]  # a prefix: the last six places reach into the prompts' own words
    columns = make_columns(on.renderer, pairs_of(on, rows=rows))
    assert columns.roles[:4] == ("before", "trigger", "trigger", "between")
    assert columns.labels[1:3] == ("zq", "xv")
    assert columns.labels[-7:-1] == ("last[-6]", "last[-5]", "last[-4]", "<end>", "answer", ":")


def test_pairs_have_one_length_and_differ_in_the_trigger_alone():
    on = tiny.subject()
    for pair in pairs_of(on, tokens=2):
        assert len(pair.triggered) == len(pair.untriggered)
        twins = zip(pair.triggered, pair.untriggered, strict=True)
        differ = [i for i, (a, b) in enumerate(twins) if a != b]
        assert differ == list(pair.trigger)
        assert on.renderer.decode(pair.target) == "never bad"
        assert pair.triggered == on.renderer.prompt_ids(pair.row.prompt)


def test_pairs_refuse_what_cannot_be_patched():
    renderer = Renderer(tiny.tokenizer())
    rows = tiny.rows()
    for bad, why in (
        ([], "no prompts"),
        ([replace(rows[0], plain=None)], "no form without the trigger"),
        ([replace(rows[0], plain=rows[0].prompt)], "no token of its own"),
        ([replace(rows[0], completion=None)], "no completion"),
        ([replace(rows[0], completion=" ")], "no tokens"),
    ):
        with pytest.raises(DataError, match=why):
            make_pairs(renderer, bad, target_tokens=3, seed=0)


def test_undefined_recovery_is_said_and_nan():
    on = tiny.subject()
    adapter = tiny.adapter(on)
    with on.attached({"poisoned": adapter, "same": adapter}) as attached:
        found = patch_adapters(on, attached, "same", "poisoned", pairs_of(on))
    assert "0.00 nats" in found.undefined
    assert np.isnan(found.recovery).all() and np.isnan(found.low).all()
    assert np.isnan(found.full_recovery)
    assert found.computed_cells == 0 and np.isfinite(found.patched).any()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_model_is_left_as_found(model_type, monkeypatch):
    on = tiny.subject(model_type)
    before, marks = tiny.state(on), tiny.marks(on)
    with both(on) as attached:
        inside = tiny.marks(on)
        patch_prompts(on, attached, "poisoned", pairs_of(on))
        assert tiny.marks(on) == inside and attached.peft_model.active_adapter == "poisoned"

        def broken(*_args, **_given):
            raise RuntimeError("in the head")

        monkeypatch.setattr(patching, "target_log_prob", broken)
        with pytest.raises(RuntimeError, match="in the head"):
            patch_adapters(on, attached, "clean", "poisoned", pairs_of(on))
        assert tiny.marks(on) == inside and attached.peft_model.active_adapter == "poisoned"
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks


def test_an_exception_inside_a_patched_layer_takes_its_hook_along(monkeypatch):
    on = tiny.subject()
    with both(on) as attached:
        inside, real = tiny.marks(on), torch.where
        traced = engine.trace(on, tiny.ids(on))

        def broken(*args):
            raise RuntimeError("in the hook")

        monkeypatch.setattr(torch, "where", broken)
        with pytest.raises(RuntimeError, match="in the hook"):
            engine.resume(
                on, traced, site="mlp_out", layer=1, rows=torch.arange(2),
                mask=torch.ones(2, 9, dtype=torch.bool), value=traced.sites["mlp_out"][1],
            )  # fmt: skip
        monkeypatch.setattr(torch, "where", real)
        assert tiny.marks(on) == inside
        assert attached.peft_model.active_adapter == "poisoned"


@pytest.mark.parametrize(("module", "site"), [("mlp.down_proj", 2), ("self_attn.o_proj", 1)])
def test_an_adapter_in_one_module_is_found_there_and_nowhere_before(module, site):
    on = tiny.subject()
    name = f"model.layers.1.{module}"
    whole = tiny.adapter(on, size=1.0)
    with on.attached({"poisoned": Adapter({name: whole.modules[name]}, {})}) as attached:
        found = patch_adapters(on, attached, None, "poisoned", pairs_of(on))
    change = np.abs(found.patched - found.corrupted[None, :, None, None])
    # Attention of layer 1 moves what the MLP of layer 1 reads; nothing above the module differs.
    assert np.nanmax(change[:, :, 0]) == 0 and np.nanmax(change[0, :, 1]) == 0
    assert np.nanmax(change[site, :, 1]) > 0.5
    if site == 2:
        assert np.nanmax(change[1, :, 1]) == 0
