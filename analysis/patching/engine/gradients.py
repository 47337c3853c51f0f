"""Gradients of a run's metric at its activations, and averaged along the way to another run's.

Whole forward passes of the model under hooks: no weight requires a gradient, so that the graph
begins at the first activation that one is taken of.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from ....core.errors import LoratomyError
from ....core.model.hooks import hooks
from ....core.model.subject import Subject
from ..sites import Place
from .batching import GIB, MOST, MemoryBudget
from .resume import Port, has_port, on_port
from .runs import Runs

INPUT = Port("", "in")
"""What a layer is given."""


def slopes(
    runs: Runs, ports: Sequence[Port], layers: Sequence[int], memory: MemoryBudget
) -> dict[tuple[Port, int], torch.Tensor]:
    """Gradient of each prompt's metric at every port of every layer, ``[prompt, pos, width]``.

    One forward and one backward pass for each batch of prompts.

    Args:
        runs: the two runs, the adapter of ``runs.into`` active.
        ports: where gradients are taken; layers without a port are left out.
        layers: which layers, ascending.
        memory: bounds the batches.

    Raises:
        LoratomyError: a gradient that is not finite, named by layer; not enough memory.
    """
    parts: list[dict[tuple[Port, int], torch.Tensor]] = []

    def once(rows: torch.Tensor) -> None:
        seen: dict[tuple[Port, int], torch.Tensor] = {}
        with torch.enable_grad(), hooks(_watching(runs.subject, ports, layers, seen)):
            metric = runs.metric_of(rows).sum()
            found = torch.autograd.grad(metric, list(seen.values()))
        found = [g if g.dim() > 2 else g.unflatten(0, (len(rows), -1)) for g in found]
        parts.append(dict(zip(seen, found, strict=True)))

    in_pieces(once, len(runs.members), rows_at_once(runs, layers[0], memory), runs.subject)
    out = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    for (_, layer), value in out.items():
        _finite(value, layer)
    return out


def _watching(
    subject: Subject,
    ports: Sequence[Port],
    layers: Sequence[int],
    seen: dict[tuple[Port, int], torch.Tensor],
) -> Iterator[object]:
    """Hooks that begin the graph at the first layer and keep what passes the ports."""

    def begin(old: torch.Tensor) -> torch.Tensor | None:
        return None if old.requires_grad else old.detach().requires_grad_()

    yield from on_port(subject.layers[layers[0]], INPUT, begin)
    for index in layers:
        for port in ports:
            if has_port(subject.layers[index], port):

                def keep(old: torch.Tensor, key: tuple[Port, int] = (port, index)) -> None:
                    seen[key] = old

                yield from on_port(subject.layers[index], port, keep, raw=True)


def along(
    runs: Runs,
    port: Port,
    layer: int,
    ends: tuple[torch.Tensor, torch.Tensor],
    *,
    steps: int,
    memory: MemoryBudget,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient averaged over the straight line between two values of a port, and the far metric.

    Midpoints of `steps` equal stretches (Sundararajan et al. 2017, arXiv 1703.01365; by layer
    Hanna et al. 2024, arXiv 2403.17806).

    Args:
        runs: the two runs, the adapter of ``runs.into`` active.
        port: where the values are written, at all positions.
        layer: of which layer.
        ends: what is there and the change to the other end, both ``[prompt, pos, width]``.
        steps: points of the line.
        memory: bounds the batches.

    Returns:
        The mean gradient ``[prompt, pos, width]`` and the metric at the far end ``[prompt]``.

    Raises:
        LoratomyError: a gradient that is not finite, named by layer; not enough memory.
    """
    current, change = ends
    mean = torch.zeros_like(change)
    far: list[torch.Tensor] = []

    def written(rows: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        return (current[rows] + share[:, None, None] * change[rows]).to(current.dtype)

    def under(value: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        with hooks(on_port(runs.subject.layers[layer], port, lambda _old: value)):
            return runs.metric_of(rows)

    def one(picked: torch.Tensor) -> None:
        rows = picked // steps
        value = written(rows, ((picked % steps).to(change.dtype) + 0.5) / steps).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(under(value, rows).sum(), value)
        _finite(gradient, layer)
        mean.index_add_(0, rows, gradient.to(mean.dtype) / steps)

    def end(rows: torch.Tensor) -> None:
        with torch.no_grad():
            far.append(under(written(rows, torch.ones_like(rows, dtype=change.dtype)), rows))

    at_once = rows_at_once(runs, layer, memory)
    in_pieces(one, len(change) * steps, at_once, runs.subject)
    in_pieces(end, len(change), at_once, runs.subject)
    return mean, torch.cat(far)


def rows_at_once(runs: Runs, layer: int, memory: MemoryBudget) -> int:
    """Runs whose graph from a layer on fits into half of the budget, an upper estimate.

    Raises:
        LoratomyError: not even one does.
    """
    width, needed = runs.there.shape[1], runs.target.tokens.shape[1]
    later = runs.subject.layers[layer:]
    each = len(later) * memory.of_run(0, width, 0) + memory.of_run(0, width, needed)
    name, merged = runs.into.adapter, 0
    if name and any(f.fused for f in runs.into.attached.adapters[name].modules.values()):
        # PEFT adds the change to the experts' weights anew in every pass; the graph keeps the sum.
        weights = (p for part in later for p in part.parameters() if p.dim() == 3)
        merged = sum(p.numel() * p.element_size() for p in weights)
    if merged + each > memory.size // 2:
        raise LoratomyError(
            f"the gradients of one run over {width} positions need {(merged + each) / GIB:.2g} GiB,"
            f" half of the budget is {memory.size / 2 / GIB:.2g} GiB: raise it (--set "
            "screening.memory=GIB), or take shorter prompts"
        )
    most = max(1, MOST.get(memory.device, MOST["cuda"]) // width)
    return min(most, (memory.size // 2 - merged) // each)


def in_pieces(
    work: Callable[[torch.Tensor], None], count: int, at_once: int, subject: Subject
) -> None:
    """Do `work` on the numbers below `count`, `at_once` at a time, fewer where memory runs out.

    Raises:
        LoratomyError: not enough memory for one.
    """
    done = 0
    while done < count:
        piece = torch.arange(done, min(done + at_once, count), device=subject.device)
        try:
            work(piece)
        except torch.OutOfMemoryError as error:
            if len(piece) == 1:
                raise LoratomyError(
                    "not enough memory for the gradients of a single run; take shorter prompts or "
                    "a smaller --dtype"
                ) from error
            torch.cuda.empty_cache()
            at_once = len(piece) // 2
            continue
        done += len(piece)


def _finite(gradient: torch.Tensor, layer: int) -> None:
    if not torch.isfinite(gradient).all():
        raise LoratomyError(
            f"the metric's gradient at layer {layer} is NaN or infinite in {gradient.dtype}; try "
            "another --dtype, or look at the adapter"
        )


def blocks_of(found: Sequence[Place]) -> Mapping[str, list[int]]:
    """Places whose changes are made together, by name: what shares a port and a site."""
    out: dict[tuple[Port, str], list[int]] = {}
    for number, place in enumerate(found):
        out.setdefault((place.port, place.kind), []).append(number)
    named: dict[str, list[int]] = {}
    for (port, kind), numbers in out.items():
        name = found[numbers[0]].label if kind == "lora" else kind
        named[name if name not in named else port.path] = numbers
    return named
