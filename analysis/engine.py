"""Resuming a forward pass at a layer, with one activation replaced: the exact patch engine.

Works on live modules of every `Family`: each layer is called with the keyword arguments that the
model itself gave it (masks, rotary embeddings), the head is applied to the needed positions only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..core.families import logits_of, submodule
from ..core.subject import Subject

SITES = ("resid_pre", "attn_out", "mlp_out")


@dataclass(frozen=True, slots=True)
class Trace:
    """Activations of one run over prompts of equal length, all ``[batch, pos, d_model]``."""

    sites: dict[str, list[torch.Tensor]]
    """Hook point -> one tensor per layer."""
    final: torch.Tensor
    """The last residual, before the final norm."""
    kwargs: list[dict[str, Any]]
    """What the model gave each layer besides the residual."""


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


def trace(subject: Subject, ids: torch.Tensor) -> Trace:
    """Run prompts ``[batch, pos]`` without padding and keep every layer's activations."""
    family, layers = subject.family, subject.layers
    sites: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}
    kwargs: list[dict[str, Any]] = []
    last: list[torch.Tensor] = []

    def before(_module: Any, args: Any, given: dict[str, Any]) -> None:
        rest = dict(given)
        hidden = args[0] if args else rest.pop("hidden_states")
        sites["resid_pre"].append(hidden)
        kwargs.append(rest)

    handles = []
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        for site, path in (("attn_out", family.attention), ("mlp_out", family.mlp)):
            keep = sites[site]
            hook = submodule(layer, path).register_forward_hook(
                lambda _m, _i, out, keep=keep: keep.append(_first(out))
            )
            handles.append(hook)
    handles.append(layers[-1].register_forward_hook(lambda _m, _i, out: last.append(_first(out))))
    try:
        with torch.inference_mode():
            subject.model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(sites, last[0], kwargs)


def _rows(value: Any, index: torch.Tensor, batch: int) -> Any:
    """Keyword arguments for picked rows; what is shared by all rows stays as it is."""
    if isinstance(value, tuple):
        return tuple(_rows(v, index, batch) for v in value)
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == batch > 1:
        return value[index]
    return value


@contextmanager
def _replaced(module: Any, mask: torch.Tensor, value: torch.Tensor) -> Iterator[None]:
    def write(_module: Any, _inputs: Any, out: Any) -> Any:
        new = torch.where(mask, value, _first(out))
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = module.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


def resume(
    subject: Subject,
    run: Trace,
    *,
    site: str,
    layer: int,
    rows: torch.Tensor,
    mask: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """The last residual when `value` is written at one site, ``[row, pos, d_model]``.

    Args:
        subject: with the run's adapter active.
        run: the run that is patched.
        site: one of `SITES`.
        layer: index of the patched layer; the layers before it are not computed again.
        rows: which prompt of the run each row continues, ``[row]``.
        mask: where to write, ``[row, pos]`` booleans.
        value: what to write, ``[row, pos, d_model]``.
    """
    layers, batch = subject.layers, len(run.final)
    hidden = run.sites["resid_pre"][layer][rows]
    spot = mask[..., None]
    with torch.inference_mode():
        for index in range(layer, len(layers)):
            given = {k: _rows(v, rows, batch) for k, v in run.kwargs[index].items()}
            if index > layer or site == "resid_pre":
                hidden = torch.where(spot, value, hidden) if index == layer else hidden
                hidden = _first(layers[index](hidden, **given))
                continue
            path = subject.family.attention if site == "attn_out" else subject.family.mlp
            with _replaced(submodule(layers[index], path), spot, value):
                hidden = _first(layers[index](hidden, **given))
    return hidden


def replay(subject: Subject, run: Trace, source: Trace) -> torch.Tensor:
    """The last residual when every block's output in every layer is another run's.

    With equal embeddings this is the other run's last residual, whatever adapter is active: the
    attention and MLP outputs are all that layers write.
    """
    family, hidden = subject.family, run.sites["resid_pre"][0]
    everywhere = torch.ones_like(hidden[..., :1], dtype=torch.bool)
    with torch.inference_mode():
        for index, layer in enumerate(subject.layers):
            attention, mlp = submodule(layer, family.attention), submodule(layer, family.mlp)
            with (
                _replaced(attention, everywhere, source.sites["attn_out"][index]),
                _replaced(mlp, everywhere, source.sites["mlp_out"][index]),
            ):
                hidden = _first(layer(hidden, **run.kwargs[index]))
    return hidden


def target_log_prob(
    subject: Subject, residual: torch.Tensor, start: int, targets: Sequence[list[int]]
) -> torch.Tensor:
    """Log-probability of each row's target tokens, summed, ``[row]`` in nats.

    Args:
        subject: for its norm and head.
        residual: the last residual ``[row, pos, d_model]``.
        start: position that predicts the first target token.
        targets: token ids, one list per row, all of one length.
    """
    length = len(targets[0])
    wanted = torch.tensor(targets, device=residual.device)
    with torch.inference_mode():
        logits = logits_of(subject.model, subject.family, residual[:, start : start + length])
        log_probs = logits.float().log_softmax(-1)
    return log_probs.gather(-1, wanted[..., None])[..., 0].sum(-1)
