"""The places that can be patched: where each is written, and with what."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.errors import LoratomyError
from ...core.model.families import linear_shape, mid_of, submodule
from ...core.model.subject import Attached, Subject
from ...core.registry import nearest
from .engine.resume import Port, Trace, has_port

RESIDUALS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Sites with one place per layer."""
SITES = (*RESIDUALS, "z", "lora", "experts", "router")
"""All sites: attention heads, LoRA modules and experts have several places per layer."""


@dataclass(frozen=True, slots=True)
class Place:
    """One thing that is patched, in every layer that has it."""

    label: str
    """As in the record, e.g. ``attn_out``, ``head 3``, ``q_proj``, ``expert 2``."""
    kind: str
    """Its site, of `SITES`."""
    port: Port
    """Where it is written."""
    part: slice | None = None
    """Features of the port that belong to it; None: all."""
    expert: int = -1
    """Number of the expert."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs that patching brings together."""

    trace: Trace
    """Its activations, those of `ports` kept."""
    adapter: str | None
    """The adapter that was active."""
    attached: Attached
    """Where it is attached."""


def places(subject: Subject, attached: Attached, sites: Sequence[str]) -> list[Place]:
    """What the named sites consist of on this model.

    Raises:
        LoratomyError: an unknown site, experts on a model without, no linear LoRA module.
    """
    family = subject.family
    out: list[Place] = []
    for site in sites:
        if site not in SITES:
            raise LoratomyError(
                f"no site {site!r}; {nearest(site, list(SITES))} (known: {', '.join(SITES)})"
            )
        if site == "z":
            out += _heads(subject)
        elif site == "lora":
            out += _modules(subject, attached)
        elif site in ("experts", "router"):
            if not family.experts:
                raise LoratomyError(
                    f"site {site!r}: {family.model_type} has no experts; take mlp_out"
                )
            out += _experts(subject) if site == "experts" else [_router(subject)]
        elif site == "resid_mid" and not has_mid(subject):
            raise LoratomyError(
                f"site 'resid_mid': attention and MLP of {family.model_type} both read resid_pre, "
                "there is nothing between them; take resid_pre or resid_post"
            )
        else:
            out.append(Place(site, site, _residual_ports(subject)[site]))
    return out


def has_mid(subject: Subject) -> bool:
    """Whether layers have a ``resid_mid``: an MLP that reads what attention has added."""
    return bool(mid_of(subject.model, subject.family))


def _residual_ports(subject: Subject) -> dict[str, Port]:
    family = subject.family
    return {
        "resid_pre": Port("", "in"),
        "resid_mid": Port(mid_of(subject.model, family), "in", shared=True),
        "resid_post": Port("", "out"),
        "attn_out": Port(family.attention, "out"),
        "mlp_out": Port(family.mlp, "out"),
    }


def block_ports(subject: Subject) -> tuple[Port, Port]:
    """The outputs of attention and MLP: all that a layer writes."""
    ports = _residual_ports(subject)
    return ports["attn_out"], ports["mlp_out"]


def _heads(subject: Subject) -> list[Place]:
    config: Any = subject.model.config.get_text_config()
    count = config.num_attention_heads
    width = _side(submodule(subject.layers[0], subject.family.out_proj), "in", 0) // count
    port = Port(subject.family.out_proj, "in")
    return [
        Place(f"head {h}", "z", port, part=slice(h * width, (h + 1) * width)) for h in range(count)
    ]


def _modules(subject: Subject, attached: Attached) -> list[Place]:
    """Linear modules inside the layers that any of the adapters changes, in the model's order."""
    start = subject.family.layers + "."
    paths: dict[str, None] = {}
    for adapter in attached.adapters.values():
        for name, factors in adapter.modules.items():
            if name.startswith(start) and not factors.fused:
                paths[name.removeprefix(start).split(".", 1)[1]] = None
    if not paths:
        raise LoratomyError(
            "site 'lora': the adapter changes no linear module inside the layers; for fused "
            "experts take the site experts"
        )
    last = Counter(path.rsplit(".", 1)[-1] for path in paths)

    def label(path: str) -> str:
        name = path.rsplit(".", 1)[-1]
        return name if last[name] == 1 else path  # GPT-2 has a c_proj in attention and one in MLP

    return [Place(label(path), "lora", Port(path, "out")) for path in paths]


def _experts(subject: Subject) -> list[Place]:
    config: Any = subject.model.config.get_text_config()
    count = getattr(config, "num_local_experts", None) or config.num_experts
    port = Port(subject.family.mlp, "out")
    return [Place(f"expert {e}", "experts", port, expert=e) for e in range(count)]


def _router(subject: Subject) -> Place:
    return Place("router", "router", Port(subject.family.mlp, "out"))


def kept_ports(found: Sequence[Place], adapter: str | None) -> list[Port]:
    """What a run under an adapter must keep so that these places can be patched."""
    ports = {place.port: None for place in found}
    for place in found:
        if place.kind == "lora" and adapter is not None:
            ports[_contribution(place, adapter)] = None
    return list(ports)


def _contribution(place: Place, adapter: str) -> Port:
    return Port(f"{place.port.path}.lora_B.{adapter}", "out")


def port_width(subject: Subject, port: Port) -> int:
    """Numbers per position that pass a port; 0 where no layer has it."""
    hidden = subject.model.config.get_text_config().hidden_size
    for layer in subject.layers:
        if has_port(layer, port):
            module: Any = submodule(layer, port.path) if port.path else layer
            return _side(module, port.side, hidden)
    return 0


def _side(module: Any, side: str, otherwise: int) -> int:
    """What a linear layer takes in or gives out, under an adapter or not; of others a default."""
    shape = linear_shape(getattr(module, "base_layer", module))
    if shape is None:
        name = "in_features" if side == "in" else "out_features"
        return int(getattr(module, name, otherwise))
    return shape[1] if side == "in" else shape[0]


def value_and_current(
    subject: Subject,
    place: Place,
    layer: int,
    source: Side,
    into: Side,
    *,
    take: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What is written at a place and what is there, both ``[batch, pos, width]``.

    LoRA modules: the module's output with the adapter's own contribution ``dW x`` of the source run
    in place of that of the run that is patched. Experts: the same with one expert's weighted
    output. Router: the experts' output when the source run's choices and weights are used.

    Args:
        subject: with the adapter of `into` active.
        place: of `places`.
        layer: its index.
        source: the run that values are taken from.
        into: the run that is patched.
        take: brings values of the source run to the positions of the other.

    Returns:
        None where the layer has no such place.
    """
    if place.port not in into.trace.ports or layer not in into.trace.ports[place.port]:
        return None
    current = into.trace.ports[place.port][layer]
    if place.kind == "lora":
        new, old = (_delta(subject, place, layer, side) for side in (source, into))
        if new is None and old is None:
            return None
        change = (0.0 if new is None else take(new)) - (0.0 if old is None else old)
        return (current + change).to(current.dtype), current  # PEFT's factors may be wider
    if place.kind in ("experts", "router") and layer not in into.trace.routing:
        return None  # some layers of a mixture have a plain MLP
    if place.kind == "experts":
        new, old = (_expert(subject, place.expert, layer, side) for side in (source, into))
        return (current + (take(new) - old)).to(current.dtype), current
    if place.kind == "router":
        hidden, *own = into.trace.routing[layer]
        batch = current.shape[0]
        chosen = [
            take(t.view(batch, -1, t.shape[-1])).flatten(0, 1)
            for t in source.trace.routing[layer][1:]
        ]
        experts = submodule(subject.layers[layer], subject.family.experts)
        change = experts(hidden, *chosen) - experts(hidden, *own)
        return (current + change.view_as(current)).to(current.dtype), current
    return take(source.trace.ports[place.port][layer]), current


def _delta(subject: Subject, place: Place, layer: int, side: Side) -> torch.Tensor | None:
    """The adapter's contribution ``scaling * B A x`` at a module, None where it has none."""
    if side.adapter is None:
        return None
    port = _contribution(place, side.adapter)
    if layer not in side.trace.ports.get(port, {}):
        return None
    module: Any = submodule(subject.layers[layer], place.port.path)
    return side.trace.ports[port][layer] * module.scaling[side.adapter]


def _expert(subject: Subject, number: int, layer: int, side: Side) -> torch.Tensor:
    """One expert's weighted output in a run, ``[batch, pos, d_model]``."""
    hidden, chosen, weights = side.trace.routing[layer]
    experts = submodule(subject.layers[layer], subject.family.experts)
    mine = torch.where(chosen == number, weights, torch.zeros_like(weights))
    with side.attached.using(side.adapter):
        return experts(hidden, chosen, mine).view_as(side.trace.inputs[layer])


def features(place: Place, width: int, device: torch.device) -> torch.Tensor | None:
    """Which features of the port belong to a place, ``[width]`` booleans; None: all."""
    if place.part is None:
        return None
    mask = torch.zeros(width, dtype=torch.bool, device=device)
    mask[place.part] = True
    return mask
