"""A layer and its factors as one operation: PEFT's numbers, PEFT's way where more is meant."""

import pytest
import torch
from loratomy.core.model import fused
from loratomy.core.model.fused import fused_factors
from peft.tuners.lora import Linear

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


def run(on, *, use, dropout=0.0, prepare=lambda _attached: None, also=()):
    """Logits, and gradients of factors and of the embedded prompt."""
    adapters = {"x": tiny.adapter(on), **{name: tiny.adapter(on, seed=1) for name in also}}
    with on.attached(adapters, trainable=True, dropout=dropout) as attached:
        prepare(attached)
        embedded = on.model.get_input_embeddings()(tiny.ids(on)).detach().requires_grad_(True)
        with use(on.model):
            logits = on.model(inputs_embeds=embedded).logits
            logits.square().mean().backward()
        assert not any("forward" in vars(m) for m in layers(attached))
        named = on.model.named_parameters()
        found = {name: p.grad.clone() for name, p in named if p.grad is not None}
        return logits.detach(), found | {"x": embedded.grad}


def nothing(_model):
    """PEFT as it is."""
    return torch.enable_grad()


def layers(attached):
    return [m for m in attached.peft_model.modules() if type(m) is Linear]


def test_it_is_pefts_layer_forward_and_back(count):
    on = tiny.subject()
    logits, found = run(on, use=fused_factors)
    assert len(count) == len(tiny.adapter(on).modules)
    wanted, grads = run(on, use=nothing)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-6)
    assert found.keys() == grads.keys() and len(found) > 1
    for name, grad in grads.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-7)


def test_a_factor_that_is_not_trained_has_no_gradient_and_the_others_keep_theirs(count):
    def freeze(attached):
        for layer in layers(attached):
            layer.lora_B["x"].weight.requires_grad_(False)

    _, found = run(tiny.subject(), use=fused_factors, prepare=freeze)
    _, wanted = run(tiny.subject(), use=nothing, prepare=freeze)
    assert count and found.keys() == wanted.keys() and not any("lora_B" in n for n in found)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-7)


def test_a_base_in_bfloat16_and_factors_in_float32():
    """Every output and gradient is as near to float32 as PEFT's own under autocast, or nearer."""
    torch.manual_seed(0)
    base, x = torch.nn.Linear(64, 48), torch.randn(40, 64)
    a, b = torch.randn(4, 64) / 8, torch.randn(48, 4) / 2
    slope = torch.randn(40, 48)

    def by(layer, dtype):
        inputs = [t.clone().to(kind).requires_grad_(True) for t, kind in zip(
            (x, a, b), (dtype, torch.float32, torch.float32), strict=True)]  # fmt: skip
        y = layer(*inputs)
        y.backward(slope.to(y.dtype))
        return [y.detach().float(), *(t.grad.float() for t in inputs)]

    weight, bias = base.weight.detach(), base.bias.detach()
    w16, b16 = weight.bfloat16(), bias.bfloat16()
    linear, fuse = torch.nn.functional.linear, fused._LinearWithFactors.apply
    exact = by(lambda x, a, b: linear(x, w16.float(), b16.float()) + 2.0 * (x @ a.T @ b.T),
               torch.float32)  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        peft = by(lambda x, a, b: linear(x, w16, b16) + linear(linear(x, a), b) * 2.0,
                  torch.bfloat16)  # fmt: skip
    ours = by(lambda x, a, b: fuse(x, w16, b16, a, b, 2.0), torch.bfloat16)
    for one, other, truth in zip(ours, peft, exact, strict=True):
        scale = truth.norm()
        assert (one - truth).norm() / scale < max(1.2 * (other - truth).norm() / scale, 0.003)


def test_no_rows_are_no_error():
    weight, a, b = torch.randn(3, 5), torch.randn(2, 5), torch.randn(3, 2)
    for shape in ((0, 5), (2, 0, 5)):
        y = fused._LinearWithFactors.apply(torch.zeros(shape), weight, None, a, b, 1.0)
        assert y.shape == (*shape[:-1], 3)


def off(attached):
    attached.peft_model.base_model.disable_adapter_layers()


def both(attached):
    attached.peft_model.base_model.set_adapter(["x", "y"])


def hooked(attached):
    for layer in layers(attached):
        layer.base_layer.register_forward_hook(lambda _m, _given, found: 2 * found)


def hooked_backward(attached):
    for layer in layers(attached):
        layer.lora_A["x"].register_full_backward_hook(lambda _m, _given, _out: None)


def changed(attached):
    for layer in layers(attached):
        usual = layer.base_layer.forward
        layer.base_layer.forward = lambda x, usual=usual: 2 * usual(x)


def base_trained(attached):
    for layer in layers(attached):
        layer.base_layer.weight.requires_grad_(True)


def training(attached):
    attached.peft_model.train()


def merged(attached):
    attached.peft_model.merge_adapter()


@pytest.mark.parametrize(
    "prepare", [off, both, hooked, hooked_backward, changed, base_trained, training, merged]
)
def test_what_is_more_than_plain_goes_pefts_way(count, prepare):
    found = []
    for use in (fused_factors, nothing):
        torch.manual_seed(0)
        dropout, also = 0.5 * (prepare is training), ("y",) * (prepare is both)
        on = tiny.subject()
        found.append(run(on, use=use, dropout=dropout, prepare=prepare, also=also)[0])
    assert not count and torch.equal(*found)


def test_an_error_in_the_block_leaves_nothing():
    on = tiny.subject()
    with on.attached({"x": tiny.adapter(on)}) as attached:
        with pytest.raises(IndexError), fused_factors(on.model):
            on.model(input_ids=torch.tensor([[10**6]]))
        assert layers(attached) and not any("forward" in vars(m) for m in layers(attached))


def test_gradients_of_gradients_are_refused():
    on = tiny.subject()
    with on.attached({"x": tiny.adapter(on)}, trainable=True), fused_factors(on.model):
        embedded = on.model.get_input_embeddings()(tiny.ids(on)).detach().requires_grad_(True)
        loss = on.model(inputs_embeds=embedded).logits.square().mean()
        (grad,) = torch.autograd.grad(loss, embedded, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.square().sum().backward()
