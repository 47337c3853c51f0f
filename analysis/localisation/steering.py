"""Vectors added to what attention writes at the end of the prompt, once, while it is read."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ...core.model.families import submodule
from ...core.model.hooks import hooks
from ...core.model.subject import Subject


@contextmanager
def added_at_prompt_end(subject: Subject, vectors: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Vectors on the output of attention projections at the last position of the prompt.

    Only in passes that begin a sequence: those with nothing in the cache. Prompts must end in the
    last column, as `generate` pads them. Later tokens see the vectors through keys and values.

    Args:
        subject: with the wanted adapter active.
        vectors: layer -> ``[d_model]``; none: nothing is changed.
    """
    begins = [False]

    def enter(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        cache = given.get("past_key_values")
        begins[0] = cache is None or not cache.get_seq_length()

    def adding(vector: torch.Tensor) -> Callable[..., torch.Tensor | None]:
        def add(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor | None:
            if not begins[0]:
                return None
            changed = out.clone()
            changed[..., -1, :] += vector.to(out.device, out.dtype)
            return changed

        return add

    def handles() -> Iterator[Any]:
        if vectors:
            yield subject.model.register_forward_pre_hook(enter, with_kwargs=True)
        for layer, vector in vectors.items():
            module = submodule(subject.layers[layer], subject.family.out_proj)
            yield module.register_forward_hook(adding(vector))

    with hooks(handles()):
        yield
