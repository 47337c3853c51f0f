"""The two runs that patching brings together: what a sweep asks of them, and both made."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ....core.model.families import logits_of
from ....core.model.subject import Attached, Subject
from ..metrics import METRICS, Metric, MetricTarget, metric_target
from ..sites import Place, Side, kept_ports, value_and_current
from .batching import MemoryBudget
from .resume import Port, trace


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRun:
    """One of the two runs of a sweep."""

    adapter: str | None
    """The active adapter; None: the base alone."""
    prompts: Sequence[list[int]]
    """Token ids of every prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is patched into what, and what it is measured by."""

    source: PatchRun
    """Where values are taken from."""
    into: PatchRun
    """Where they are written."""
    targets: Sequence[list[int]]
    """First tokens of each prompt's target; both runs are forced to them."""
    columns: Sequence[Sequence[Sequence[int]]]
    """``[prompt][column]``: positions of `into` that are written together; empty: none."""
    aligned: Sequence[Sequence[int]]
    """``[prompt][position of into]``: the same token's position in `source`, -1 for none."""
    reference: str
    """Which run is the clean one for the metric: ``source`` or ``into``."""
    metric: str
    """One of `METRICS`."""
    against: int | None = None
    """Token that the target competes with, see `metric_target`."""

    def groups(self, numbers: int, depth: int, memory: MemoryBudget) -> list[list[int]]:
        """Prompts of equal lengths, as many as memory allows.

        Args:
            numbers: kept of a position by each layer.
            depth: layers.
            memory: bounds each group.
        """
        sets: dict[tuple[int, ...], list[int]] = {}
        for i, target in enumerate(self.targets):
            lengths = (len(self.into.prompts[i]), len(self.source.prompts[i]), len(target))
            sets.setdefault(lengths, []).append(i)
        out = []
        for lengths, members in sets.items():
            step = memory.prompts(max(lengths[:2]) + lengths[2], depth, numbers)
            out += [members[i : i + step] for i in range(0, len(members), step)]
        return out


@dataclass(frozen=True, slots=True)
class Runs:
    """Prompts of equal lengths with both their runs."""

    subject: Subject
    """The model."""
    members: list[int]
    """Which prompts of the sweep."""
    source: Side
    """The run that values are taken from."""
    into: Side
    """The run that is patched."""
    target: MetricTarget
    """What the metric compares with."""
    metric: Metric
    """The metric."""
    index: torch.Tensor
    """For every position of `into` the source's, 0 where there is none, ``[prompt, pos]``."""
    there: torch.Tensor
    """Whether there is one, ``[prompt, pos]``."""
    reached: torch.Tensor
    """Metric of `source`, ``[prompt]``."""
    baseline: torch.Tensor
    """Metric of `into`, ``[prompt]``."""

    @property
    def needed(self) -> slice:
        """Positions of `into` that predict the target's tokens: its last ones."""
        width = self.into.trace.width
        return slice(width - self.target.tokens.shape[1], width)

    def taken(self, value: torch.Tensor) -> torch.Tensor:
        """Source values at the positions of `into`, ``[prompt, pos, width]``."""
        counting = torch.arange(self.index.shape[1], device=self.index.device)
        if value.shape[1] == len(counting) and bool((self.index == counting).all()):
            return value
        return value.gather(1, self.index[..., None].expand(*self.index.shape, value.shape[-1]))

    def value_and_current(
        self, place: Place, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What is written at a place and what is there, see `sites.value_and_current`."""
        sides = self.source, self.into
        return value_and_current(self.subject, place, layer, *sides, take=self.taken)

    def metric_at(self, residual: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Metric of patched runs from their last residual at the needed positions, ``[row]``."""
        logits = logits_of(self.subject.model, self.subject.family, residual)
        return self.metric.of(precise(logits), self.target.rows(rows))

    def metric_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Metric of some prompts of `into`, run whole under the hooks that are on, ``[row]``."""
        ids, needed = self.into.trace.ids[rows], self.target.tokens.shape[1]
        out = self.subject.model(input_ids=ids, use_cache=False, logits_to_keep=needed)
        return self.metric.of(precise(out.logits), self.target.rows(rows))


def precise(value: torch.Tensor) -> torch.Tensor:
    """The same in float32, or in float64 where it is that already."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def both_runs(
    subject: Subject,
    attached: Attached,
    what: Sweep,
    at: Sequence[Place],
    members: list[int],
    *,
    besides: Sequence[Port] = (),
) -> Runs:
    """Both runs of prompts of equal lengths, with the activations that the places need.

    Args:
        subject: the model.
        attached: its adapters.
        what: the sweep.
        at: what is patched, see `sites.places`.
        members: which prompts of the sweep.
        besides: further ports that both runs keep.

    Raises:
        LoratomyError: activations that are not finite.
    """
    targets = [what.targets[i] for i in members]
    forced = len(targets[0]) - 1
    sides, logits = [], []
    for run in (what.source, what.into):
        rows = [run.prompts[i] + what.targets[i][:-1] for i in members]
        ids = torch.tensor(rows, device=subject.device)
        ports = list(dict.fromkeys([*kept_ports(at, run.adapter), *besides]))
        with attached.using(run.adapter), torch.no_grad():
            kept = trace(subject, ids, ports)
            predicting = kept.final[:, -forced - 1 :]
            logits.append(precise(logits_of(subject.model, subject.family, predicting)))
        sides.append(Side(kept, run.adapter, attached))
    target = metric_target(targets, logits[what.reference == "into"], against=what.against)
    metric, other = METRICS[what.metric], len(what.source.prompts[members[0]])
    maps = [[*what.aligned[i], *range(other, other + forced)] for i in members]
    index = torch.tensor(maps, device=subject.device)
    reached, baseline = (metric.of(one, target) for one in logits)
    return Runs(
        subject, members, sides[0], sides[1], target, metric, index.clamp_min(0), index >= 0,
        reached, baseline,
    )  # fmt: skip
