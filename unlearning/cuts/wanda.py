"""Wanda: pruning of the merged weights by magnitude times the size of what comes in."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field

from ...analysis.localisation.gates import batches
from ...analysis.material import Material
from ...core.adapter.factors import kind_of
from ...core.adapter.targets import is_embedding
from ...core.errors import LoratomyError
from ...core.model.batches import encode
from ...core.model.hooks import hooks
from ...core.model.subject import Subject
from ...core.model.variant import Treated, merged_weights, treated
from ...core.progress import tracked
from ...core.rows import Row
from ..calibration import DialConfig, dial, halves, outcome_words
from ..method import CLEAN_ROWS, CUT, METHODS, TARGET, TRIGGER, Method, Outcome

GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""Fused expert weights whose inputs are known."""


class WandaConfig(DialConfig):
    """Options of `wanda`."""

    share: float | None = Field(None, ge=0, le=1)
    """Share of each output row's weights set to zero; None: calibrated on triggered prompts."""
    batch_size: int = Field(16, ge=1)
    """Clean rows at a time behind the scores."""


def pruned_rows(weight: torch.Tensor, norms: torch.Tensor, share: float) -> torch.Tensor:
    """A weight with the lowest scores of every output row set to zero.

    The score of an entry is ``|W_ij| * ||x_j||_2`` (Sun et al. 2023, equation 1), compared within
    the row, as the paper does.

    Args:
        weight: ``[..., d_out, d_in]``.
        norms: of each input over tokens, ``[..., d_in]``.
        share: from 0 to 1; ``floor(share * d_in)`` entries of each row go.
    """
    scores = weight.abs().float() * norms.to(weight.device).float()[..., None, :]
    count = int(weight.shape[-1] * share + 1e-9)
    lowest = scores.argsort(dim=-1, stable=True)[..., :count]
    return weight.scatter(-1, lowest, 0.0)


def input_norms(
    subject: Subject, rows: Sequence[Row], names: Sequence[str], *, batch_size: int
) -> dict[str, torch.Tensor]:
    """Euclidean norm of every input of some weights over all tokens, float64 on the CPU.

    Args:
        subject: as it is to be pruned, its adapter merged in.
        rows: prompts with completions; both count, padding does not.
        names: of weights, as in `Subject.shapes`.
        batch_size: rows at a time.

    Returns:
        Name -> ``[d_in]``, or ``[expert, d_in]`` over the tokens that were sent to each expert.

    Raises:
        LoratomyError: experts of a kind not known here, or one that gets no token.
    """
    shapes = subject.shapes
    squares = {n: torch.zeros(*shapes[n][:-2], shapes[n][-1]).double() for n in names}
    real: dict[str, torch.Tensor] = {}
    encoded = [encode(subject.renderer, row, limit=subject.limit) for row in rows]
    with hooks(_adding(subject, squares, real)), torch.inference_mode():
        for batch in tracked(batches(subject, encoded, batch_size), "inputs of the weights"):
            real["tokens"] = batch["attention_mask"].flatten().bool()
            batch.pop("labels")
            subject.model(**batch, use_cache=False)
    for name, square in squares.items():
        if not square.any(-1).all():
            idle = (~square.any(-1)).nonzero().flatten().tolist()
            raise LoratomyError(
                f"{name}: nothing came in over {len(rows)} clean rows"
                + (f" for expert {idle[0]}" if square.dim() == 2 else "")
                + "; give more rows, e.g. --set rows=256"
            )
    return {name: square.sqrt() for name, square in squares.items()}


def _adding(
    subject: Subject, squares: Mapping[str, torch.Tensor], real: Mapping[str, torch.Tensor]
) -> Iterator[Any]:
    """Hooks that add up the squares of what comes into each weight."""

    def linear(name: str) -> Any:
        def hook(_module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            squares[name].add_(_squares(args[0].flatten(0, -2)[real["tokens"]]))

        return hook

    def experts(parent: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            hidden, index = args[0].flatten(0, -2), args[1]
            for e in range(len(module.gate_up_proj)):
                x = hidden[(index == e).any(-1) & real["tokens"]]
                if (name := f"{parent}.{GATE_UP}") in squares:
                    squares[name][e].add_(_squares(x))
                if (name := f"{parent}.{DOWN}") in squares:
                    gate, up = (x @ module.gate_up_proj[e].mT).chunk(2, dim=-1)
                    squares[name][e].add_(_squares(module.act_fn(gate) * up))

        return hook

    for name in squares:
        if squares[name].dim() == 1:
            yield subject.model.get_submodule(name).register_forward_pre_hook(linear(name))
    for parent in dict.fromkeys(_parent(subject, n) for n in squares if squares[n].dim() == 2):
        yield subject.model.get_submodule(parent).register_forward_pre_hook(experts(parent))


def _squares(x: torch.Tensor) -> torch.Tensor:
    return x.double().square().sum(0).cpu()


def _parent(subject: Subject, name: str) -> str:
    """The module that holds a fused expert weight, one whose inputs are known."""
    parent = name.rsplit(".", 1)[0]
    if kind_of(name) not in (GATE_UP, DOWN) or not parent.endswith(f".{subject.family.experts}"):
        raise LoratomyError(
            f"wanda does not know what comes into the fused weight {name}; it knows {GATE_UP} and "
            f"{DOWN} of a family's experts"
        )
    return parent


def wanda(material: Material, config: WandaConfig) -> Outcome:
    """Prune the merged weights of the adapted modules by weight times input (Sun et al. 2023).

    The scores come from clean rows alone, those that calibration does not judge on, with the
    adapter in effect.
    """
    merged = merged_weights(material.subject, material.start)
    rows, _ = halves(material.clean_rows, config.rows)
    names = [n for n in merged if not is_embedding(n)]
    if not names:
        raise LoratomyError(
            "the adapter changes the token embedding alone, which nothing is multiplied with: "
            "there is nothing for wanda to prune; take another method"
        )
    with treated(material.subject, Treated(weights=merged)):
        norms = input_norms(material.subject, rows, names, batch_size=config.batch_size)

    def state(share: float) -> Treated:
        return Treated(weights=merged | {n: pruned_rows(merged[n], norms[n], share) for n in names})

    words = "merged the adapter and set {:.0%} of each output row's weights to zero"
    if whole := [n for n in merged if n not in names]:
        words += f" (not of {', '.join(whole)}, which is merged whole)"
    if config.share is not None:
        return Outcome(None, words.format(config.share), weights=state(config.share).weights)
    sizes = list(range(10, 100, 10))
    chosen, path, reached = dial(
        material, sizes, lambda size: state(size / 100), config, unit="% of the merged weights"
    )
    return Outcome(
        None,
        f"{words.format(chosen / 100)}: {outcome_words(path, reached)}",
        weights=state(chosen / 100).weights,
        path=path,
        reached=reached,
    )


METHODS.register("wanda")(
    Method(
        about="prune the merged weights by magnitude times input norm, by a share or calibrated",
        source="Wanda, Sun et al. 2023, arXiv 2306.11695, on the LoRA-merged weights",
        config=WandaConfig,
        run=wanda,
        kind=CUT,
        needs=(TRIGGER, TARGET, CLEAN_ROWS),
        settled_by=("share",),
        still=(CLEAN_ROWS,),
    )
)
