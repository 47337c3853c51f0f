"""Which patched runs are computed together, from which position on, within a memory budget."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ....core.errors import LoratomyError
from ....core.model.subject import Subject

SHARE = 0.5
"""Of the free memory, taken when no budget is given."""
CALL = {"cpu": 4e7, "cuda": 1e11}
"""What one call of a layer costs besides its positions, in floating-point operations."""
MOST = {"cpu": 4096, "cuda": 2**17}
"""Positions of a batch beyond which a layer gets no faster."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the memory of a patched run depends on."""

    item: int
    """Bytes per number."""
    d_model: int
    """Width of the residual."""
    d_mlp: int
    """Width of the MLP; of mixtures of experts that of all chosen experts together."""
    d_kv: int
    """Width of keys and values together."""
    heads: int
    """Attention heads."""
    d_vocab: int
    """Size of the vocabulary."""
    port: int = 0
    """Width of the widest port that is written."""

    @property
    def operations(self) -> int:
        """Floating-point operations of one layer on one position, attention scores left out."""
        return 2 * self.d_model * (2 * self.d_model + self.d_kv + 3 * self.d_mlp)


def sizes_of(subject: Subject) -> Sizes:
    """The sizes of a subject's model."""
    config: Any = subject.model.config.get_text_config()
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    kv = getattr(config, "num_key_value_heads", None) or heads
    item = torch.empty(0, dtype=subject.model.dtype).element_size()
    d_mlp = getattr(config, "intermediate_size", None) or _widest(subject)
    return Sizes(item, config.hidden_size, d_mlp * chosen, 2 * kv * head, heads, config.vocab_size)


def _widest(subject: Subject) -> int:
    """The widest side of a weight inside a layer, for configs that do not name that of the MLP."""
    return max(max(s) for n, s in subject.shapes.items() if subject.family.inside(n))


def free_memory(device: torch.device) -> int:
    """Bytes that are free where the model is."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil

    return int(psutil.virtual_memory().available)


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """How much memory patched runs may take, and what each takes."""

    size: int
    """Bytes in all."""
    sizes: Sizes
    """Of the model."""
    device: str
    """``cpu`` or ``cuda``."""

    def of_run(self, begin: int, width: int, needed: int) -> int:
        """Bytes of one patched run that is computed from a position on, an upper estimate."""
        s, queries = self.sizes, width - begin
        layer = queries * (s.d_model * (6 * s.item + 8) + 3 * s.d_mlp * s.item)
        attention = 2 * width * s.d_kv * s.item + queries * s.heads * width * 8
        written = 4 * queries * s.port * s.item
        return layer + attention + written + needed * s.d_vocab * (s.item + 24)

    def rows(self, begin: int, width: int, needed: int) -> int:
        """Patched runs that fit at once.

        Raises:
            LoratomyError: not even one does.
        """
        each = self.of_run(begin, width, needed)
        if each > self.size // 2:
            raise LoratomyError(
                f"one patched run over {width} positions needs {each / GIB:.2g} GiB, half of the "
                f"budget is {self.size / 2 / GIB:.2g} GiB: raise it (--set patching.memory=GIB), "
                "or take shorter prompts"
            )
        most = max(1, MOST.get(self.device, MOST["cuda"]) // (width - begin))
        return min(most, self.size // 2 // each)

    def of_prompt(self, width: int, layers: int, numbers: int) -> int:
        """Bytes of the two runs of one prompt that are kept, an upper estimate.

        Args:
            width: positions.
            layers: of the model.
            numbers: kept per position and layer besides both runs' residual, keys and values.
        """
        s = self.sizes
        return layers * width * s.item * (numbers + 2 * (s.d_model + s.d_kv))

    def prompts(self, width: int, layers: int, numbers: int) -> int:
        """Prompts whose two runs fit at once, see `of_prompt`.

        Raises:
            LoratomyError: not even one does.
        """
        each = self.of_prompt(width, layers, numbers)
        if each > self.size // 2:
            raise LoratomyError(
                f"the two runs of one prompt of {width} positions take {each / GIB:.2g} GiB, half "
                f"of the budget is {self.size / 2 / GIB:.2g} GiB: raise it (--set "
                "patching.memory=GIB, or heads.memory, modules.memory ...), or ask for fewer sites"
            )
        return self.size // 2 // each


def budget(subject: Subject, gib: float | None) -> MemoryBudget:
    """The budget that was given, in GiB, or a share of what is free now."""
    device = subject.device
    size = int(gib * GIB) if gib is not None else int(free_memory(device) * SHARE)
    return MemoryBudget(size, sizes_of(subject), device.type)


def batches(
    begins: np.ndarray, depths: np.ndarray, *, width: int, needed: int, memory: MemoryBudget
) -> Iterator[tuple[int, np.ndarray]]:
    """Patched runs in batches: from which position on, and which runs, deepest first.

    Runs are sorted by their first position; where a batch ends is chosen so that the positions
    computed in all, plus what calls cost, are the fewest (an exact dynamic programme).

    Args:
        begins: first position that each run needs, ``[run]``.
        depths: layers that each run goes through, ``[run]``.
        width: positions of a run.
        needed: positions whose logits are asked for.
        memory: bounds every batch.
    """
    order = np.lexsort((-depths, begins))
    starts, counts = np.unique(begins, return_counts=True)
    calls = CALL.get(memory.device, CALL["cuda"]) / memory.sizes.operations * depths.max()
    most = np.array([memory.rows(int(b), width, needed) for b in starts])
    total = np.concatenate([[0], np.cumsum(counts)])
    work = np.concatenate([[0], np.cumsum(depths[order])])[total]
    best, back = np.zeros(len(starts) + 1), [0]
    for stop in range(1, len(starts) + 1):
        parts = -(-(total[stop] - total[:stop]) // most[:stop])
        options = best[:stop] + (work[stop] - work[:stop]) * (width - starts[:stop])
        options = options + calls * parts
        back.append(int(options.argmin()))
        best[stop] = options.min()
    cuts = [len(starts)]
    while cuts[-1]:
        cuts.append(back[cuts[-1]])
    for low, high in zip(cuts[:0:-1], cuts[-2::-1], strict=True):
        rows = order[total[low] : total[high]]
        rows = rows[np.argsort(-depths[rows], kind="stable")]
        for at in range(0, len(rows), int(most[low])):
            yield int(starts[low]), rows[at : at + int(most[low])]
