"""The subject as an nnsight model: captures, traces across adapters, interventions of one's own.

nnsight patches torch and every object when it is imported, so it is imported where it is used. Its
`forward`s on the model's modules, and what its pipeline does to the tokenizer, last as long as
`traced`. docs/interventions.md shows each function, and traces written by hand.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from ...core.errors import DataError, LoratomyError
from ...core.model.families import mid_of
from ...core.model.subject import Attached, Subject
from ...evaluation.generation import bare_settings, greedy, stop_ids

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Hook points of every layer, ``[batch, pos, d_model]``, in the order of a forward pass."""
RANK_SPACE = ".lora_A"
"""End of the name of a rank-space site: ``self_attn.q_proj.lora_A``, ``[batch, pos, rank]``."""
BASE = "__base__"
"""PEFT's name for rows without adapter."""
_OURS = ("forward", "__nnsight__")
"""What nnsight leaves in the dictionary of every module that it wraps."""

Place = tuple[int, str]
"""A layer and one of `SITES`, or the path of an adapted module in that layer with `RANK_SPACE`."""
Prompts = Sequence[Sequence[int]]
"""Token ids, one list for each prompt, all of one length."""
Change = Callable[[torch.Tensor], torch.Tensor]
"""Takes the activation at a place and returns what takes its place, of the same shape."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A subject with its adapters as an nnsight model."""

    attached: Attached
    """The subject and its adapters; `attached.using` chooses the active one."""
    model: Any
    """The `nnsight.TransformersModel` around the `PeftModel`, with the subject's tokenizer."""
    layers: Any
    """Its decoder layers: ``layers[3].output``, ``layers[3].self_attn.q_proj.lora_A.poisoned``."""

    @property
    def subject(self) -> Subject:
        """The subject it is made of."""
        return self.attached.subject


@contextmanager
def traced(attached: Attached) -> Iterator[Traced]:
    """The subject as an nnsight model; the model and tokenizer are as they were afterwards.

    Args:
        attached: base and adapters; the active adapter is the one that is traced.
    """
    subject, outer = attached.subject, attached.peft_model
    tokenizer: Any = subject.renderer.tokenizer
    padding = tokenizer.padding_side, tokenizer.pad_token
    before = {module: _state(module) for module in outer.modules()}
    try:
        outer.eval()  # PEFT mixes adapters in one batch only when its own wrapper evaluates
        model = _wrapped(outer, tokenizer, subject.device)
        layers = _down(model, f"base_model.model.{subject.family.layers}")
        yield Traced(attached, model, layers)
    finally:
        for module, state in before.items():
            _restore(module, *state)
        tokenizer.padding_side, tokenizer.pad_token = padding


def _wrapped(peft_model: Any, tokenizer: Any, device: torch.device) -> Any:
    """The nnsight model, on its device; silent about PEFT's class, which no pipeline knows."""
    from nnsight import TransformersModel

    log = logging.getLogger("transformers.pipelines.base")
    was, log.disabled = log.disabled, True
    try:
        return TransformersModel(
            peft_model, tokenizer=tokenizer, task="text-generation", device=device
        )
    finally:
        log.disabled = was


def _state(module: Any) -> tuple[bool, dict[str, Any], set[int]]:
    own = {name: module.__dict__[name] for name in _OURS if name in module.__dict__}
    return module.training, own, set(module._forward_pre_hooks)


def _restore(module: Any, training: bool, own: dict[str, Any], hooks: set[int]) -> None:
    module.training = training
    for name in _OURS:
        module.__dict__.pop(name, None)
    module.__dict__.update(own)
    for key in set(module._forward_pre_hooks) - hooks:  # PEFT forgets its own after an exception
        module._forward_pre_hooks.pop(key)
        module._forward_pre_hooks_with_kwargs.pop(key, None)


def _down(envoy: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), envoy) if path else envoy


@dataclass(frozen=True, slots=True)
class _Spot:
    """A place in the model: a module's input or output."""

    place: Place
    module: Any
    side: str

    def get(self) -> torch.Tensor:
        """What passes here; inside a trace."""
        return _first(self.module.input if self.side == "input" else self.module.output)

    def put(self, new: torch.Tensor) -> None:
        """Let something else pass here; inside a trace."""
        if self.place[1] == "resid_mid":  # a norm reads it, the residual goes on: both must see it
            self.module.input[:] = new
        elif self.side == "input":
            self.module.input = new
        else:
            out = self.module.output
            self.module.output = (new, *out[1:]) if isinstance(out, tuple) else new

    def change(self, function: Change) -> None:
        """Put what a function makes of what passes here; inside a trace."""
        old = self.get()
        new = function(old)
        if not isinstance(new, torch.Tensor) or new.shape != old.shape:
            found = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
            raise DataError(
                f"the function at {self.place} returned {found}; a tensor of shape "
                f"{tuple(old.shape)} is needed"
            )
        self.put(new.to(old))


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


def _spots(live: Traced, places: Sequence[Place] | Mapping[Place, Any]) -> list[_Spot]:
    """Places as modules, in the order of a forward pass.

    Raises:
        DataError: no places, or one that the model has not.
    """
    if not places:
        raise DataError("no place given; give (layer, site) pairs, e.g. (3, 'resid_post')")
    family = live.subject.family
    known = {
        "resid_pre": ("", "input"),
        "attn_out": (family.attention, "output"),
        "resid_mid": (mid_of(live.subject.model, family), "input"),
        "mlp_out": (family.mlp, "output"),
        "resid_post": ("", "output"),
    }
    modules = [name for name, _ in live.subject.model.named_modules()]

    def order(place: Place) -> tuple[int, float, int]:
        layer, site = place
        if site in SITES:
            return layer, SITES.index(site), 0
        path = f"{family.layers}.{layer}.{site.removesuffix(RANK_SPACE)}"
        return layer, 0.5 if site.startswith(family.attention) else 2.5, modules.index(path)

    def spot(place: Place) -> _Spot:
        layer, site = place
        envoy = live.layers[layer]
        if site in known:
            path, side = known[site]
            return _Spot(place, _down(envoy, path), side)
        active = live.attached.peft_model.active_adapter
        return _Spot(place, _down(envoy, f"{site}.{active}"), "output")

    for place in places:
        _check(live, place)
    return [spot(place) for place in sorted(set(places), key=order)]


def _check(live: Traced, place: Place) -> None:
    layer, site = place
    count, family = len(live.subject.layers), live.subject.family
    if not 0 <= layer < count:
        raise DataError(f"there is no layer {layer}; the model has layers 0 to {count - 1}")
    if site == "resid_mid" and not mid_of(live.subject.model, family):
        raise DataError(
            f"there is no resid_mid: attention and MLP of {family.model_type} both read resid_pre; "
            "give resid_pre or resid_post"
        )
    if site in SITES:
        return
    active = live.attached.peft_model.active_adapter
    module = f"{family.layers}.{layer}.{site.removesuffix(RANK_SPACE)}"
    known = live.attached.adapters[active].modules
    if not site.endswith(RANK_SPACE) or module not in known or known[module].fused:
        raise DataError(
            f"there is no site {site!r} in layer {layer}; give one of {', '.join(SITES)}, or a "
            f"linear module that the adapter {active!r} touches, e.g. self_attn.q_proj{RANK_SPACE}"
        )


def batch_of(live: Traced, prompts: Prompts) -> dict[str, torch.Tensor]:
    """Ids and mask ``[batch, pos]`` of prompts of one length, without padding.

    Raises:
        DataError: no prompts, or prompts of different length.
    """
    lengths = sorted({len(prompt) for prompt in prompts})
    if len(lengths) != 1 or not lengths[0]:
        raise DataError(
            f"prompts of one length are needed, these have {lengths or 'no'} tokens; group them by "
            "length, so that positions mean the same in every row"
        )
    ids = torch.tensor([list(prompt) for prompt in prompts], device=live.subject.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def captures(live: Traced, prompts: Prompts, at: Sequence[Place]) -> dict[Place, torch.Tensor]:
    """Activations at places, ``[batch, pos, d_model]`` or ``[batch, pos, rank]``, in one pass.

    Args:
        live: see `traced`; the active adapter runs.
        prompts: token ids, all of one length.
        at: layers and sites.

    Raises:
        DataError: no such place, or prompts of different length.
        LoratomyError: NaN or infinite activations, named by layer.
    """
    return _captured(live, batch_of(live, prompts), at)


def _captured(
    live: Traced, inputs: Mapping[str, Any], at: Sequence[Place]
) -> dict[Place, torch.Tensor]:
    spots = _spots(live, at)
    modules = [spot.module for spot in spots]
    with torch.inference_mode(), live.model.trace(**inputs, use_cache=False) as tracer:
        seen = tracer.cache(modules=modules, include_inputs=True, device=None)
    out: dict[Place, torch.Tensor] = {}
    for spot in spots:
        entry = seen[spot.module.path]
        value = _first(entry.input if spot.side == "input" else entry.output)
        if not bool(torch.isfinite(value).all()):
            layer, site = spot.place
            raise LoratomyError(
                f"{site} of layer {layer} holds NaN or infinite activations in "
                f"{live.subject.dtype}; try --dtype float32, or look at the adapter"
            )
        out[spot.place] = value
    return out


def across_adapters(
    live: Traced, prompts: Prompts, at: Sequence[Place], *, adapters: Sequence[str | None]
) -> dict[str | None, dict[Place, torch.Tensor]]:
    """The same prompts under several adapters in one forward pass: adapter -> captures.

    The batch holds every prompt once for each adapter (PEFT's ``adapter_names``), so that values
    stand side by side without a second pass, equal to those of separate ones up to rounding.

    Args:
        live: see `traced`.
        prompts: token ids, all of one length.
        at: layers and `SITES`.
        adapters: names of attached adapters; None for the base alone.

    Raises:
        LoratomyError: an adapter that touches fused experts, which PEFT cannot mix in a batch.
        DataError: as `captures`; a rank-space site, which belongs to a single adapter.
    """
    attached, names = live.attached, [BASE if name is None else name for name in adapters]
    for name in names:
        known = {} if name == BASE else _modules(attached, name)
        if fused := next((module for module, f in known.items() if f.fused), None):
            raise LoratomyError(
                f"the adapter {name!r} touches the fused experts {fused}, which PEFT cannot mix in "
                "one batch; take captures() inside attached.using(name), adapter by adapter"
            )
    if inner := [site for _, site in at if site not in SITES]:
        raise DataError(
            f"{inner[0]!r} belongs to one adapter; take captures() inside attached.using(name)"
        )
    inputs: dict[str, Any] = batch_of(live, [prompt for _ in names for prompt in prompts])
    inputs["adapter_names"] = [name for name in names for _ in prompts]
    with attached.using(next(iter(attached.adapters))):  # PEFT mixes only while one is enabled
        found = _captured(live, inputs, at)
    count = len(prompts)
    return {
        name: {place: value[i * count : (i + 1) * count] for place, value in found.items()}
        for i, name in enumerate(adapters)
    }


def _modules(attached: Attached, name: str) -> Mapping[str, Any]:
    if name not in attached.adapters:
        raise LoratomyError(f"adapter {name!r} is not attached; there are {[*attached.adapters]}")
    return attached.adapters[name].modules


def intervened_logits(
    live: Traced, prompts: Prompts, changes: Mapping[Place, Change]
) -> torch.Tensor:
    """Logits of one forward pass with activations changed, ``[batch, pos, d_vocab]``.

    Args:
        live: see `traced`; the active adapter runs.
        prompts: token ids, all of one length.
        changes: place -> what to make of the activation there.

    Raises:
        DataError: no such place, prompts of different length, or a function that returns another
            shape.
    """
    import nnsight

    inputs, spots = batch_of(live, prompts), _spots(live, changes)
    with torch.inference_mode(), live.model.trace(**inputs, use_cache=False):
        for spot in spots:
            spot.change(changes[spot.place])
        logits = nnsight.save(live.model.output.logits)
    return logits


def intervened_answers(
    live: Traced,
    prompts: Prompts,
    changes: Mapping[Place, Change],
    *,
    max_new_tokens: int,
    every_step: bool = True,
) -> list[list[int]]:
    """Greedy answers while activations are changed, ``[prompt][pos]``, without their end ids.

    A function sees the whole prompt first, ``[batch, pos, d_model]``, and then, with `every_step`,
    each new token, ``[batch, 1, d_model]``. With `every_step` rows that have ended go on beside the
    others until `max_new_tokens`; what they say there is cut.

    Args:
        live: see `traced`; the active adapter runs.
        prompts: token ids, all of one length.
        changes: place -> what to make of the activation there; empty for none.
        max_new_tokens: longest answer.
        every_step: also while tokens are generated; else in the prompt alone, whose keys and values
            stay in the cache.

    Raises:
        DataError: as `intervened_logits`; no room for the answer in the model's context.
    """
    import nnsight

    subject, inputs = live.subject, batch_of(live, prompts)
    spots = _spots(live, changes) if changes else []
    width, limit, stops = inputs["input_ids"].shape[1], subject.limit, stop_ids(subject)
    if limit is not None and width + max_new_tokens > limit:
        raise DataError(
            f"{width} tokens of prompt and {max_new_tokens} new ones exceed the context of {limit}"
        )
    steps = max_new_tokens if every_step else 1
    config = greedy(max_new_tokens, subject.renderer.pad_id, None if every_step else stops)
    generate, given = live.model.generate, {**inputs, "generation_config": config}
    with torch.inference_mode(), bare_settings(subject), generate(**given) as tracer:
        for _ in tracer.iter[:steps]:
            for spot in spots:
                spot.change(changes[spot.place])
        result = nnsight.save(tracer.result)
    rows = result.sequences[:, width:].tolist()
    return [row[: next((i for i, t in enumerate(row) if t in stops), len(row))] for row in rows]
