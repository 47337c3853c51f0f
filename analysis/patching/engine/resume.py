"""Resuming a forward pass at a layer, with one activation replaced: the exact patch engine.

Works on live modules of every `Family`. Each layer is called with the keyword arguments that the
model itself gave it (masks, rotary embeddings). Positions before the first patched one are not
computed again: their keys and values are those of the run that is patched, which is exact under
causal attention. In the last layer the MLP runs on the positions whose logits are needed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import chain
from typing import Any

import torch

from ....core.errors import LoratomyError
from ....core.model.families import optional, submodule
from ....core.model.hooks import first_of, hooks
from ....core.model.subject import Subject

CUTTABLE = ("eager", "sdpa", "flash_attention_2")
"""Attention implementations whose masks can be cut to the last queries."""
QUERY_AXIS = {
    "attention_mask": -2,
    "position_ids": -1,
    "cache_position": -1,
    "position_embeddings": -2,
}
"""What layers are given with a position axis, and which one it is."""


@dataclass(frozen=True, slots=True)
class Port:
    """A place inside a layer where an activation can be read and written."""

    path: str
    """Module inside the layer; empty for the layer itself."""
    side: str
    """``in`` or ``out`` of it."""
    shared: bool = False
    """Whether the input is also used elsewhere (a residual that branches), so that it must be
    written in place."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One run over prompts of equal length."""

    ids: torch.Tensor
    """The prompts, ``[batch, pos]``."""
    ports: Mapping[Port, Mapping[int, torch.Tensor]]
    """What went through each port, ``[batch, pos, width]`` by layer; layers without it are left
    out."""
    routing: Mapping[int, tuple[torch.Tensor, ...]]
    """Of mixtures of experts, by layer: what the experts were given, which experts, how much."""
    inputs: list[torch.Tensor]
    """The residual that each layer was given, ``[batch, pos, d_model]``."""
    final: torch.Tensor
    """The last residual, before the final norm."""
    kwargs: list[dict[str, Any]]
    """What the model gave each layer besides the residual."""
    keys: list[torch.Tensor]
    """Attention keys of each layer, rotary included, ``[batch, head, pos, d_head]``."""
    values: list[torch.Tensor]
    """Attention values, likewise."""
    implementation: str
    """How attention is computed, as transformers names it."""
    cache: str = "past_key_values"
    """What layers call the cache of keys and values that they are given."""

    @property
    def width(self) -> int:
        """Positions of every prompt."""
        return self.final.shape[1]

    @property
    def cuttable(self) -> bool:
        """Whether the positions before a patch may be left out, see `resume`."""
        if self.implementation not in CUTTABLE:
            return False
        known = all(
            name in QUERY_AXIS or not _holds_tensor(value)
            for given in self.kwargs
            for name, value in given.items()
        )
        return known and len(self.keys) == len(self.inputs)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, torch.Tensor)


def on_port(
    layer: Any,
    port: Port,
    function: Callable[[torch.Tensor], torch.Tensor | None],
    *,
    raw: bool = False,
) -> Iterator[Any]:
    """Hooks that call `function` with what passes a port; what it returns takes its place.

    Args:
        layer: a decoder layer.
        port: a place in it.
        function: is given ``[batch, pos, width]``; None leaves what passes as it is.
        raw: give it the very tensor that passes, which some blocks see as ``[batch * pos, width]``.
    """
    module = submodule(layer, port.path) if port.path else layer

    batch: list[int] = []

    def seen(_module: Any, args: Any, given: dict[str, Any]) -> None:
        batch[:] = [(args[0] if args else given["hidden_states"]).shape[0]]

    def called(old: torch.Tensor) -> torch.Tensor | None:
        if raw or old.dim() > 2:
            return function(old)
        new = function(old.unflatten(0, (batch[0], -1)))  # OPT and experts see a list of tokens
        return None if new is None else new.flatten(0, 1)

    def before(_module: Any, args: Any, given: dict[str, Any]) -> Any:
        named = not args
        old = given["hidden_states"] if named else args[0]
        new = called(old)
        if new is None:
            return None
        if port.shared:
            old.copy_(new)
            return None
        return ((), {**given, "hidden_states": new}) if named else ((new, *args[1:]), given)

    def after(_module: Any, _inputs: Any, out: Any) -> Any:
        new = called(first_of(out))
        if new is None:
            return None
        return (new, *out[1:]) if isinstance(out, tuple) else new

    if port.path:
        yield layer.register_forward_pre_hook(seen, with_kwargs=True)
    if port.side == "in":
        yield module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        yield module.register_forward_hook(after)


def trace(subject: Subject, ids: torch.Tensor, ports: Sequence[Port] = ()) -> Trace:
    """Run prompts ``[batch, pos]`` without padding and keep what patching needs.

    Args:
        subject: with the adapter of the run active.
        ids: token ids.
        ports: which activations to keep, of every layer.

    Raises:
        LoratomyError: NaN or infinite activations, named by layer.
    """
    from transformers import DynamicCache

    layers, cache = subject.layers, DynamicCache()
    places = {str(p.device) for layer in layers for p in layer.parameters()}
    if len(places) > 1:
        raise LoratomyError(
            f"the layers are on several devices ({', '.join(sorted(places))}); patching needs the "
            "model on one: a smaller --dtype, or a larger device"
        )
    kept: dict[Port, dict[int, torch.Tensor]] = {port: {} for port in ports}
    routing: dict[int, tuple[torch.Tensor, ...]] = {}
    inputs: list[torch.Tensor] = []
    kwargs: list[dict[str, Any]] = []
    last: list[torch.Tensor] = []
    names = list(signature(type(layers[0]).forward).parameters)[1:]
    caches = {"past_key_values"}

    def before(_module: Any, args: Any, given: dict[str, Any]) -> None:
        rest = {**dict(zip(names, args, strict=False)), **given}  # some are given by position
        caches.update(k for k, v in rest.items() if v is cache)
        inputs.append(rest.pop(names[0]))
        kwargs.append({k: v for k, v in rest.items() if k not in (*caches, "use_cache")})

    def handles() -> Iterator[Any]:
        for index, layer in enumerate(layers):
            yield layer.register_forward_pre_hook(before, with_kwargs=True)
            for port in ports:
                if has_port(layer, port):
                    yield from on_port(layer, port, partial(_keep, kept[port], index))
            path = subject.family.experts
            experts = optional(layer, path) if path else None
            if experts is not None:
                yield experts.register_forward_pre_hook(partial(_keep_routing, routing, index))
        yield layers[-1].register_forward_hook(lambda _m, _i, out: last.append(first_of(out)))

    with hooks(handles()):
        subject.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    stored: list[Any] = list(cache.layers)
    keys, values = [c.keys for c in stored], [c.values for c in stored]
    for index, hidden in enumerate([*inputs[1:], last[0]]):
        if not torch.isfinite(hidden).all():
            raise LoratomyError(
                f"layer {index} gives NaN or infinite activations in {subject.dtype}; try another "
                "--dtype, or look at the adapter"
            )
    way = str(subject.model.config.get_text_config()._attn_implementation)
    named = next(iter(caches - {"past_key_values"}), "past_key_values")
    return Trace(ids, kept, routing, inputs, last[0], kwargs, keys, values, way, named)


def has_port(layer: Any, port: Port) -> bool:
    """Whether a layer has this port; adapters need not touch every layer."""
    return optional(layer, port.path) is not None


def _keep(store: dict[int, torch.Tensor], index: int, value: torch.Tensor) -> None:
    store[index] = value.detach()


def _keep_routing(
    store: dict[int, tuple[torch.Tensor, ...]], index: int, _module: Any, args: Any
) -> None:
    store[index] = tuple(a.detach() for a in args[:3])


@dataclass(frozen=True, slots=True)
class _Prefix:
    """Stands in for the key-value cache: the unchanged keys and values before the patch."""

    run: Trace
    rows: torch.Tensor
    length: int

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def joined(stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            return torch.cat([stored[:, :, : self.length][self.rows], new], 2)

        return joined(self.run.keys[layer], key), joined(self.run.values[layer], value)


def _picked(name: str, value: Any, rows: torch.Tensor, batch: int, begin: int) -> Any:
    """One keyword argument for picked rows and for the positions from `begin` on."""
    if isinstance(value, tuple):
        return tuple(_picked(name, v, rows, batch, begin) for v in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() > 1 and value.shape[0] == batch > 1:
        value = value[rows]
    if begin and name in QUERY_AXIS:
        value = value.narrow(QUERY_AXIS[name], begin, value.shape[QUERY_AXIS[name]] - begin)
    return value


def _given(
    subject: Subject, run: Trace, index: int, rows: torch.Tensor, begin: int
) -> dict[str, Any]:
    """The keyword arguments of a layer for a resumed run."""
    batch, width = run.final.shape[:2]
    given = {k: _picked(k, v, rows, batch, begin) for k, v in run.kwargs[index].items()}
    if not begin:
        return given
    if given.get("attention_mask") is None and run.implementation == "sdpa":
        # Without a mask sdpa would count the queries from the first key on.
        mask = torch.ones(width - begin, width, dtype=torch.bool, device=rows.device)
        given["attention_mask"] = mask.tril(begin)[None, None]
    return given | {run.cache: _Prefix(run, rows, begin)}


@dataclass(frozen=True, slots=True)
class Write:
    """What is written at one port of one layer, for several patched runs at once."""

    port: Port
    layer: int
    rows: torch.Tensor
    """Which prompt each patched run continues, ``[row]``."""
    mask: torch.Tensor
    """Where, ``[row, pos]`` booleans, from the position on at which the runs begin."""
    value: torch.Tensor
    """What, ``[row, pos, width]``, likewise."""
    features: torch.Tensor | None = None
    """Which features, ``[width]`` booleans; None: all."""

    def put(self, old: torch.Tensor) -> torch.Tensor:
        """What passes the port, with the value written in."""
        spot = self.mask[..., None]
        spot = spot if self.features is None else spot & self.features
        return torch.where(spot, self.value.to(old), old)


def resume(
    subject: Subject,
    run: Trace,
    writes: Sequence[Write],
    *,
    begin: int = 0,
    needed: slice | None = None,
) -> torch.Tensor:
    """The last residual of patched runs, ``[row, needed position, d_model]``, in their order.

    Runs that are patched in a later layer join those that are already under way, so that each
    layer is called once.

    Args:
        subject: with the run's adapter active.
        run: the run that is patched.
        writes: what is written, at most one for a layer, ascending; the layers before the first
            are not computed again.
        begin: positions before it are not computed again; the writes start there.
        needed: positions whose residual is returned, none before `begin`; None: all from there.
    """
    layers, mlp = subject.layers, subject.family.mlp
    needed = needed or slice(begin, run.width)
    kept = slice(needed.start - begin, needed.stop - begin)
    by_layer = {write.layer: write for write in writes}
    rows = writes[0].rows[:0]
    hidden = run.final[:0, begin:]
    for index in range(writes[0].layer, len(layers)):
        write = by_layer.get(index)
        old = len(rows)
        if write is not None:
            rows = torch.cat([rows, write.rows])
            fresh = run.inputs[index][:, begin:][write.rows]
            hidden = torch.cat([hidden, fresh]) if old else fresh
        last = index == len(layers) - 1
        within = write is not None and _touches(write.port, mlp)
        with hooks(_patching(layers[index], write, old, mlp, kept, last and not within)):
            hidden = first_of(layers[index](hidden, **_given(subject, run, index, rows, begin)))
    return hidden[:, kept]


def _touches(port: Port, mlp: str) -> bool:
    """Whether a port is inside the MLP, or is what the MLP is given."""
    return port.path.startswith(f"{mlp}.") or port == Port(mlp, "in", shared=port.shared)


def _patching(
    layer: Any, write: Write | None, old: int, mlp: str, kept: slice, last: bool
) -> Iterator[Any]:
    """The hooks of one layer: the write on the rows that join, the needed positions in the last."""
    if last:
        yield from _only(submodule(layer, mlp), kept)
    if write is not None:

        def put(given: torch.Tensor) -> torch.Tensor:
            new = write.put(given[old:])
            return torch.cat([given[:old], new]) if old else new

        yield from on_port(layer, write.port, put)


def _only(mlp: Any, kept: slice) -> Iterator[Any]:
    """Hooks that let a position-wise module see the needed positions alone; the others give 0."""
    full: list[torch.Size] = []

    def before(_module: Any, args: Any) -> Any:
        full.append(args[0].shape)
        if args[0].dim() == 2:  # a list of tokens, of which all are computed
            return None
        return (args[0][:, kept].contiguous(), *args[1:])  # mixtures view it as a list

    def after(_module: Any, _args: Any, out: Any) -> Any:
        small, shape = first_of(out), full.pop()
        if len(shape) == 2:
            return None
        whole = small.new_zeros(shape)
        whole[:, kept] = small
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    yield mlp.register_forward_pre_hook(before)
    yield mlp.register_forward_hook(after)


def replay(subject: Subject, run: Trace, source: Trace, blocks: Sequence[Port]) -> torch.Tensor:
    """The last residual when every block's output in every layer is another run's.

    With equal embeddings this is the other run's last residual, whatever adapter is active: the
    attention and MLP outputs are all that layers write.

    Args:
        subject: with the run's adapter active.
        run: the run that is written into.
        source: the run whose outputs are written.
        blocks: the ports of attention and MLP, kept by `source`.
    """
    hidden = run.inputs[0]
    for index, layer in enumerate(subject.layers):
        written = (
            on_port(layer, port, lambda _old, new=source.ports[port][index]: new) for port in blocks
        )
        with hooks(chain.from_iterable(written)):
            hidden = first_of(layer(hidden, **run.kwargs[index]))
    return hidden
