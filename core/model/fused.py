"""A linear layer and its LoRA factors as one operation, where many small ones take the time.

PEFT adds `scaling * B A x` to `W x` in six operations, each over all positions and each cast under
autocast; on a CPU these take longer than the products. Here the factors' products are added inside
the matrix product, forward and back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _LinearWithFactors(torch.autograd.Function):
    """``y = W x + bias + scaling * B A x`` in the format of W; gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        down, up = a.to(weight.dtype), (scaling * b).to(weight.dtype)
        inner = flat @ down.T
        y = torch.nn.functional.linear(flat, weight, bias).addmm_(inner, up.T)
        ctx.save_for_backward(flat, inner, weight, down, up)
        ctx.given, ctx.factors, ctx.scaling = (x.shape, x.dtype), a.dtype, scaling
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        flat, inner, weight, down, up = ctx.saved_tensors
        shape, dtype = ctx.given
        g = grads[0].reshape(-1, len(weight)).to(weight.dtype)
        back = g @ up
        for_x, _, _, for_a, for_b, _ = ctx.needs_input_grad
        d_x = (g @ weight).addmm_(back, down).view(shape).to(dtype) if for_x else None
        d_a = (back.T @ flat).to(ctx.factors) if for_a else None
        d_b = (g.T @ inner).to(ctx.factors).mul_(ctx.scaling) if for_b else None
        return d_x, None, None, d_a, d_b, None


@contextmanager
def fused_factors(model: torch.nn.Module) -> Iterator[None]:
    """Plain LoRA on plain linear layers as one operation each, for as long as the block lasts.

    What is not plain goes PEFT's way: an adapter that is off, several at once, dropout in training,
    DoRA and other variants, a stored transpose (GPT-2's layers), a base that is trained, hooks
    inside the layer.
    """
    from peft.tuners.lora import Linear

    changed = [m for m in model.modules() if type(m) is Linear and "forward" not in vars(m)]
    try:
        for layer in changed:
            layer.forward = _forward_of(layer)
        yield
    finally:
        for layer in changed:
            vars(layer).pop("forward", None)


def _forward_of(layer: Any) -> Any:
    usual = layer.forward

    def forward(x: torch.Tensor, *args: Any, **given: Any) -> torch.Tensor:
        name = None if args or given else _plain(layer)
        if name is None:
            return usual(x, *args, **given)
        base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
        with torch.autocast(x.device.type, enabled=False):
            found = _LinearWithFactors.apply(x, base.weight, base.bias, a, b, layer.scaling[name])
        return found  # pyright: ignore[reportReturnType]

    return forward


def _plain(layer: Any) -> str | None:
    """The one adapter that is on, if `_LinearWithFactors` says all that the layer does."""
    on = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(on) != 1 or layer.disable_adapters or layer.merged or layer.fan_in_fan_out:
        return None
    (name,) = on
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    drops = layer.training and getattr(dropout, "p", 0.0) > 0
    within = (layer.base_layer, a, b)
    hooked = any(getattr(m, kind) for m in (*within, dropout) for kind in _HOOKS)
    changed = any("forward" in vars(m) for m in within)
    trained = any(p.requires_grad for p in layer.base_layer.parameters())
    plain = all(type(m) is torch.nn.Linear for m in within) and b.bias is None
    more = hooked or changed or trained or drops or name in layer.lora_variant
    return name if plain and not more else None
