"""What modules read: their inputs on prompts, or on every token of the vocabulary in turn."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...core.errors import LoratomyError
from ...core.model.families import submodule
from ...core.model.hooks import hooks
from ...core.model.subject import Subject
from ...core.progress import tracked
from ...core.rendering.prompts import Renderer
from ..activations.residuals import Batch, Prompts, batches


def internal(subject: Subject, name: str) -> bool:
    """Whether a module reads activations inside a block and writes to the residual stream.

    All others in the layers read the normed residual stream.
    """
    return subject.family.writes_residual(subject.family.inside(name))


def attends(subject: Subject, name: str) -> bool:
    """Whether a module reads the residual stream for attention: queries, keys, values."""
    return subject.family.in_attention(subject.family.inside(name)) and not internal(subject, name)


See = Callable[[str, torch.Tensor, torch.Tensor | None, Batch], None]
"""Called with a module's name, its input ``[batch, pos, d_in]``, of fused experts which of them
each position goes to ``[batch, pos, chosen]`` (None for linear layers), and the batch."""


def lead(renderer: Renderer) -> list[int]:
    """The first token that every rendered prompt begins with; empty where there is none.

    It takes the place of a beginning-of-sequence token: models treat whatever comes first in a way
    of its own, so a token on its own would be read as that and not as itself.
    """
    one, other = (renderer.prompt_ids(text) for text in ("a", "The"))
    return one[:1] if one[:1] == other[:1] and min(len(one), len(other)) > 1 else []


def known_tokens(subject: Subject) -> np.ndarray:
    """Ids that both tokenizer and model know, ascending; padding of the embedding is left out."""
    size = subject.model.get_input_embeddings().weight.shape[0]
    ids = sorted({int(i) for i in subject.renderer.tokenizer.get_vocab().values()})
    return np.array([i for i in ids if i < size])


def after_lead(subject: Subject, tokens: Iterable[int]) -> Prompts:
    """Each token behind the `lead`, as prompts whose last position is read."""
    begin = lead(subject.renderer)
    return [[*begin, int(token)] for token in tokens]


def stream_inputs(
    subject: Subject,
    names: Sequence[str],
    prompts: Prompts,
    see: See,
    *,
    batch_tokens: int,
    label: str,
) -> None:
    """Show `see` what the named modules are given, batch by batch; the head is not computed.

    Args:
        subject: with the wanted adapter active.
        names: linear layers and fused expert weights, as an adapter names them.
        prompts: token ids.
        see: takes what it needs; the tensors are gone afterwards.
        batch_tokens: most positions of a batch, padding included.
        label: of the progress.

    Raises:
        LoratomyError: an input is not finite; names the module.
        DataError: no prompts, or one that is too long.
    """
    parts = batches(subject, prompts, batch_tokens=batch_tokens)
    runs_head = subject.family.head in names
    now: list[Batch] = []

    def shown(name: str, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        batch = now[-1]
        hidden = args[0] if args else next(iter(given.values()))
        routed = None
        if name in experts:  # these see all positions in a row
            hidden = hidden.reshape(*batch.ids.shape, -1)
            chosen = args[1] if len(args) > 1 else given["top_k_index"]
            routed = chosen.reshape(*batch.ids.shape, -1)
        elif hidden.dim() == 2:  # so do the MLP of OPT, and experts that all tokens share
            hidden = hidden.reshape(*batch.ids.shape, -1)
        if not bool(torch.isfinite(hidden[batch.mask]).all()):
            raise LoratomyError(
                f"the input of {name} is not finite: the weights overflow in {subject.dtype}; "
                "load with --dtype float32"
            )
        see(name, hidden, routed, batch)

    fused_parts = tuple("." + part for part in subject.family.lora_parameters)
    experts = {n for n in names if n.endswith(fused_parts)}
    body: Any = subject.model if runs_head else subject.model.base_model

    def handles() -> Iterator[Any]:
        for name in names:
            module = submodule(subject.model, name.rsplit(".", 1)[0] if name in experts else name)
            yield module.register_forward_pre_hook(
                lambda _m, args, given, name=name: shown(name, args, given), with_kwargs=True
            )

    with hooks(handles()):
        for batch in tracked(parts, label):
            now[:] = [batch]
            with torch.inference_mode():
                body(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)
