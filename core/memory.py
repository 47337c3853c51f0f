"""Peak memory of a piece of work: of the GPU where one is used, else of the process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(slots=True)
class Peak:
    """What a block took at most, known once it has ended."""

    bytes: int = 0


@contextmanager
def peak_memory(device: Any) -> Iterator[Peak]:
    """Measure the highest memory in use while the block runs.

    On a GPU what torch allocated there. Else the resident memory of the whole process, weights
    included; where it cannot be reset (outside Linux), the highest since the process began.

    Args:
        device: a `torch.device`, where the model is.
    """
    peak = Peak()
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield peak
        finally:
            peak.bytes = int(torch.cuda.max_memory_allocated(device))
        return
    with suppress(OSError):
        _RESET.write_text("5")  # man 5 proc: resets the peak resident set size
    try:
        yield peak
    finally:
        peak.bytes = _high_water()


def _high_water() -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
