"""The number format that the machine multiplies fastest in, for fits, searches and answers.

CPUs with bfloat16 instructions (AVX512-BF16, AMX) multiply matrices in it three to five times as
fast as in float32. Within `fast_format` the frozen base is held in bfloat16 and matrix products are
made in it, while the factors of adapters, losses, optimiser states and sums over tokens stay
float32; afterwards the base's own float32 weights are back, bit by bit. GPUs are left as they are:
there the base is loaded in bfloat16 from the start.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .fused import fused_factors
from .hooks import hooks
from .subject import Subject

WIDTH = 256
"""d_model from which matrix products outweigh the casts; narrower models stay as they are."""

SHORT = 256
"""Sequence length up to which attention is made of single products where gradients are wanted: the
fused kernel of CPUs is slow backward, and holds no square matrix."""


def fast_dtype(subject: Subject) -> torch.dtype | None:
    """bfloat16 where it is the faster format for this base on this machine, else None.

    It is for a float32 base of at least `WIDTH` on a CPU that has instructions for it.
    """
    able = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that runs
    width = int(subject.model.config.get_text_config().hidden_size)
    plain = subject.device.type == "cpu" and subject.model.dtype == torch.float32
    has = able.get("amx_bf16") or able.get("avx512_bf16")
    return torch.bfloat16 if has and plain and width >= WIDTH else None


def number_format(subject: Subject) -> str:
    """The format of `fast_format` in words, e.g. ``bfloat16 (factors and losses float32)``."""
    fast = fast_dtype(subject)
    if fast is None:
        return subject.dtype
    return f"{str(fast).removeprefix('torch.')} (factors and losses float32)"


@contextmanager
def fast_format(subject: Subject) -> Iterator[None]:
    """The base in `fast_dtype` for as long as the block lasts; without one nothing changes.

    Put adapters on before, so that what they read is not cast up and down again; inside works too.
    A block inside another one changes nothing.
    """
    from peft.helpers import disable_input_dtype_casting

    fast = fast_dtype(subject)
    if fast is None:
        yield
        return
    model = subject.model
    base = [p for name, p in model.named_parameters() if ".lora_" not in name]
    kept = [(p, p.data) for p in base if p.is_floating_point()]
    contexts = ExitStack()
    handles = (
        model.register_forward_pre_hook(_entering(contexts, fast), with_kwargs=True),
        model.register_forward_hook(_leaving(contexts), always_call=True),
        model.get_output_embeddings().register_forward_pre_hook(_in_one_piece),
    )
    try:
        for p, data in kept:
            p.data = data.to(fast)
        with hooks(handles), disable_input_dtype_casting(model), fused_factors(model):
            yield
    finally:
        for p, data in kept:
            p.data = data


def _entering(contexts: ExitStack, fast: torch.dtype) -> Callable[..., None]:
    """A hook before the forward pass that opens casting, and attention that is fast backward."""

    def enter(_model: Any, _args: Any, given: dict[str, Any]) -> None:
        contexts.enter_context(torch.autocast("cpu", fast))
        sequence = given.get("inputs_embeds", given.get("input_ids"))
        if torch.is_grad_enabled() and sequence is not None and sequence.shape[1] <= SHORT:
            contexts.enter_context(sdpa_kernel([SDPBackend.MATH]))

    return enter


def _in_one_piece(_head: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The head's input without gaps: of the last positions of a batch, oneDNN would otherwise
    multiply each by a copy of the weight of its own (7 GB for 117 prompts of SmolLM2)."""
    return (given[0].contiguous(), *given[1:])


def _leaving(contexts: ExitStack) -> Callable[..., None]:
    """A hook after the forward pass that closes what `_entering` opened."""

    def leave(*_: object) -> None:
        contexts.close()

    return leave
