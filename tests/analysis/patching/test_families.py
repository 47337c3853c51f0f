"""Every family: a resumed, patched run is the whole forward pass with the same hook."""

import pytest
import torch
from loratomy.analysis.lens.writing import back_through, ends, writers, writing_strength
from loratomy.analysis.material import Material
from loratomy.analysis.patching.engine import resume as engine
from loratomy.analysis.patching.patching import patch_case
from loratomy.analysis.patching.planning import PatchingConfig
from loratomy.analysis.patching.screening import _places
from loratomy.analysis.patching.sites import has_mid, places
from loratomy.core.errors import LoratomyError
from loratomy.core.model.families import FAMILIES
from loratomy.core.model.hooks import hooks

from ... import tiny

KINDS = [
    (kind, {}) for kind in FAMILIES if kind not in ("llama", "mistral", "qwen2", "qwen3", "mixtral")
]
KINDS += [("gpt_neox", {"use_parallel_residual": False}), ("qwen3_moe", {"decoder_sparse_step": 2})]


@pytest.mark.parametrize(("model_type", "changes"), KINDS)
@pytest.mark.parametrize("begin", [0, 4])
def test_a_patched_run_is_the_hooked_forward_pass(model_type, changes, begin):
    on = tiny.subject(model_type, **changes)
    prompts, others = tiny.ids(on), tiny.ids(on, seed=8)
    sites = ["resid_pre", "attn_out", "mlp_out", "resid_post", "z"] + ["resid_mid"] * has_mid(on)
    rows = torch.arange(2)
    with on.attached({"x": tiny.adapter(on)}) as attached, torch.no_grad():
        found = {p.port: p for p in places(on, attached, sites)}
        run = engine.trace(on, prompts, list(found))
        other = engine.trace(on, others, list(found))
        assert run.cuttable
        for port in found:
            for layer in range(len(on.layers)):
                value = other.ports[port][layer]
                assert value.shape[:2] == prompts.shape
                mask = torch.zeros(2, prompts.shape[1] - begin, dtype=torch.bool)
                mask[:, 5 - begin] = True
                write = engine.Write(port, layer, rows, mask, value[:, begin:])
                needed = slice(prompts.shape[1] - 1, prompts.shape[1])
                ours = engine.resume(on, run, [write], begin=begin, needed=needed)
                whole = torch.zeros(2, prompts.shape[1], dtype=torch.bool)
                whole[:, 5] = True
                full = engine.Write(port, layer, rows, whole, value)
                with hooks(engine.on_port(on.layers[layer], port, full.put)):
                    want = engine.trace(on, prompts).final[:, -1:]
                assert (ours - want).abs().max() <= 2e-5 * max(1.0, float(want.abs().max()))
                if (port.side, port.path) != ("out", "") or layer < len(on.layers) - 1:
                    assert (want - run.final[:, -1:]).abs().max() > 0 or port.path


@pytest.mark.parametrize("model_type", ["phi", "gpt_neox"])
def test_a_site_that_is_not_there_is_left_out_by_name(model_type):
    on = tiny.subject(model_type)
    with on.attached({"x": tiny.adapter(on)}) as attached:
        with pytest.raises(LoratomyError, match=r"'resid_mid': .* both read resid_pre"):
            places(on, attached, ["resid_mid"])
        found, left_out = _places(on, attached, "resid_pre,resid_mid,attn_out")
    assert [p.label for p in found] == ["resid_pre", "attn_out"]
    assert left_out.startswith("resid_mid: attention and MLP both read")


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "gemma3", "olmo2"])
def test_the_maps_of_a_family_check_themselves(model_type):
    on = tiny.subject(model_type)
    case = Material(
        subject=on,
        poisoned=tiny.adapter(on),
        clean=tiny.adapter(on, seed=9),
        triggered=tiny.rows(),
        clean_rows=tiny.clean_rows(),
        make_rule=lambda: None,
        seed=0,
        prompts=4,
    )
    for record in patch_case(case, PatchingConfig()).values():
        assert record.self_error < 1e-5
        if not record.undefined:
            assert abs(record.full_recovery - 1) < 1e-4


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "phi", "opt", "olmo2"])
def test_gradients_behind_the_final_norm_are_autograd_s_up_to_their_length(model_type):
    """At a residual of mean 0 a norm's own gradient is the linear one less the part along it."""
    on = tiny.subject(model_type)
    path = ends(on.model, on.family)
    rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    ours = back_through(rows, path)
    x = torch.randn(32, generator=torch.Generator().manual_seed(2))
    x = ((x - x.mean()) * 30).requires_grad_()
    hidden = x[None, None]
    for module in path:
        hidden = module(hidden)
    for row, line in zip(rows, ours, strict=True):
        (grad,) = torch.autograd.grad((hidden[0, 0] * row).sum(), x, retain_graph=True)
        unit = (x / x.norm()).detach()
        line = line - (line @ unit) * unit
        cosine = torch.nn.functional.cosine_similarity(line, grad, dim=0)
        assert cosine > 0.9999


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "phi", "opt", "phi3", "qwen2_moe"])
def test_what_writes_to_the_residual_stream_is_known_by_its_place(model_type):
    on = tiny.subject(model_type)
    adapter = tiny.adapter(on)
    names = {name for name, _ in writers(on, adapter)}
    per_layer = {on.family.inside(n) for n in names}
    assert per_layer <= {on.family.out_proj, *on.family.mlp_out}
    assert len(names) == 2 * len(on.layers)
    strength = writing_strength(on, adapter)
    assert torch.isfinite(torch.tensor(strength.values)).all() and strength.null > 0
