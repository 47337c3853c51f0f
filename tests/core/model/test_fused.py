"""A layer and its factors as one operation: PEFT's numbers, PEFT's way where more is meant."""

import pytest
import torch
from loratomy.core.model import fused
from loratomy.core.model.fused import fused_factors

from ... import tiny


@pytest.fixture
def count(monkeypatch):
    """How often the operation ran."""
    ran = []
    apply = fused._LinearWithFactors.apply
    monkeypatch.setattr(
        fused._LinearWithFactors, "apply", lambda *given: (ran.append(1), apply(*given))[1]
    )
    return ran


def run(on, *, use, dropout=0.0, prepare=lambda _model: None):
    """Logits, and gradients of factors and of the embedded prompt."""
    with on.attached({"x": tiny.adapter(on)}, trainable=True, dropout=dropout) as attached:
        prepare(attached)
        embedded = on.model.get_input_embeddings()(tiny.ids(on)).detach().requires_grad_(True)
        with use(on.model):
            logits = on.model(inputs_embeds=embedded).logits
            logits.square().mean().backward()
        named = on.model.named_parameters()
        found = {name: p.grad.clone() for name, p in named if p.grad is not None}
        return logits.detach(), found | {"x": embedded.grad}


def nothing(_model):
    """PEFT as it is."""
    return torch.enable_grad()


def test_it_is_pefts_layer_forward_and_back(count):
    on = tiny.subject()
    logits, found = run(on, use=fused_factors)
    assert len(count) == len(tiny.adapter(on).modules)
    wanted, grads = run(on, use=nothing)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-6)
    assert found.keys() == grads.keys() and len(found) > 1
    for name, grad in grads.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-7)
    assert not any("forward" in vars(m) for m in on.model.modules())


def off(attached):
    attached.peft_model.base_model.disable_adapter_layers()


def hooked(attached):
    for module in attached.peft_model.modules():
        if type(module).__name__ == "Linear" and hasattr(module, "lora_A"):
            module.base_layer.register_forward_hook(lambda _m, _given, found: 2 * found)


def training(attached):
    attached.peft_model.train()


@pytest.mark.parametrize(("prepare", "dropout"), [(off, 0.0), (hooked, 0.0), (training, 0.5)])
def test_what_is_more_than_plain_goes_pefts_way(count, prepare, dropout):
    found = []
    for use in (fused_factors, nothing):
        torch.manual_seed(0)
        found.append(run(tiny.subject(), use=use, dropout=dropout, prepare=prepare)[0])
    assert not count and torch.equal(*found)


def test_gradients_of_gradients_are_refused():
    on = tiny.subject()
    with on.attached({"x": tiny.adapter(on)}, trainable=True), fused_factors(on.model):
        embedded = on.model.get_input_embeddings()(tiny.ids(on)).detach().requires_grad_(True)
        loss = on.model(inputs_embeds=embedded).logits.square().mean()
        (grad,) = torch.autograd.grad(loss, embedded, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.square().sum().backward()
