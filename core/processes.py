"""Several processes on one run (`torchrun`, `accelerate launch`): who writes, and how they agree.

All of them load the same things and compute along; the first alone takes the lock, decides what is
made, writes and speaks.
"""

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def _first(names: tuple[str, ...], default: int) -> int:
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdigit())
    return int(next(found, default))


def count() -> int:
    """How many processes work together, as the launcher sets it; 1 without one."""
    return max(1, _first(_COUNT, 1))


def rank() -> int:
    """Which of them this one is, from 0."""
    return _first(_RANK, 0)


def first() -> bool:
    """Whether this process writes and speaks; True where it is the only one."""
    return count() == 1 or rank() == 0


def agreed(decide: Callable[[], T]) -> T:
    """What the first process decides; an error of its own is raised in all of them.

    The call waits until every process has come to it.

    Args:
        decide: called in the first process alone; gives something that can be pickled.
    """
    if count() == 1:
        return decide()
    _joined()
    from torch.distributed import broadcast_object_list

    result: list = [None, None]
    if first():
        try:
            result[0] = decide()
        except Exception as error:  # it is raised again below, here and in the others
            result[1] = error
    broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def _joined() -> None:
    """Make this process part of the group, each on a GPU of its own where there are any."""
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_first(("LOCAL_RANK",), 0) % torch.cuda.device_count())
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")
