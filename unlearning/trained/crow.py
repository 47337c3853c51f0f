"""CROW: fine-tuning on clean rows that keeps neighbouring layers consistent, embeddings disturbed.

Everything needed is clean rows: neither trigger nor target is looked at.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field

from ...analysis.material import Material
from ...core.adapter.factors import Adapter, uniform
from ...core.errors import LoratomyError
from ...core.model.batches import completion_log_probs
from ...core.model.hooks import first_of, hooks
from ...core.model.subject import Attached, Subject
from ...training.fitting import fresh_adapter
from ...training.objective import Batch, Objective, completion_tokens
from ..method import CLEAN_ROWS, GRADIENTS, METHODS, TRAINED, Method, Outcome
from .fit import FitConfig, scaled_rate, trained

PUBLISHED_RATE = 1e-3
"""Of the paper, on models of 7 and 13 billion parameters."""
HIGHEST_RATE = 5e-3
"""What the published rate is scaled to at most. By width alone the built-in model would get 2e-2,
at which CROW and plain fine-tuning alike wreck it; at 2e-3, the rate of the attacks there, most
backdoors stay. The published rate, too, is a few times that of the attacks."""


class CrowConfig(FitConfig):
    """Options of `crow`, defaults as published (alpha 11 is the paper's for refusals)."""

    epochs: float = Field(5, gt=0)
    """Passes over the rows."""
    learning_rate: float | None = Field(None, gt=0)
    """None: the published 1e-3 scaled to the model's width, at most 5e-3."""
    clean_rows: int = Field(100, ge=1)
    """Clean rows to train on, at most."""
    alpha: float = Field(5.5, ge=0)
    """Weight of the consistency in the loss."""
    eps: float = Field(0.1, ge=0)
    """Size of the step on every entry of the input embeddings."""
    layers: tuple[int, int] | None = None
    """First and last of the layers, from 0, whose outputs are compared with those of the next;
    None: all but the last layer, as published. The embeddings are never compared."""
    start: Literal["poisoned", "base"] = "poisoned"
    """What to train: the poisoned adapter, or a new adapter of the same shape on the base."""


def compared(layers: tuple[int, int] | None, depth: int) -> range:
    """The layers whose outputs are compared with their neighbours'.

    Args:
        layers: first and last, from 0; None: all but the last one of the model.
        depth: layers of the model.

    Raises:
        LoratomyError: less than two layers, or one that the model does not have.
    """
    first, last = layers or (0, depth - 2)
    if not 0 <= first < last < depth:
        which = f"the layers {first} to {last}" if layers else "all layers but the last"
        raise LoratomyError(
            f"{which} of {depth} leave no two outputs to compare; give crow a first and a last "
            f"layer between 0 and {depth - 1}, e.g. --set layers=[0,{depth - 1}]"
        )
    return range(first, last + 1)


@contextmanager
def outputs(subject: Subject, layers: Sequence[int]) -> Iterator[list[torch.Tensor]]:
    """A list that each forward pass refills with the outputs of these layers.

    ``[batch, pos, d_model]`` each, by hooks: the last of transformers' ``hidden_states`` is behind
    the final norm.
    """
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _given: Any, out: Any, first: bool) -> None:
        if first:
            seen.clear()
        seen.append(first_of(out))

    handles = (
        subject.layers[layer].register_forward_hook(
            lambda m, i, o, first=layer == layers[0]: keep(m, i, o, first)
        )
        for layer in layers
    )
    with hooks(handles):
        yield seen


def turn(hidden: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Sum over tokens and neighbours of ``1 - cos(h_l, h_l+1)``, differentiable.

    Args:
        hidden: outputs of neighbouring layers, ``[batch, pos, d_model]`` each.
        mask: true on the tokens that count, ``[batch, pos]``.
    """
    own = [h[mask.bool()].to(torch.promote_types(h.dtype, torch.float32)) for h in hidden]
    each = [1 - torch.cosine_similarity(one, other, dim=-1) for one, other in pairwise(own)]
    return torch.stack([e.sum() for e in each]).sum()


def disturbance(
    inconsistency: torch.Tensor, embeddings: torch.Tensor, mask: torch.Tensor, eps: float
) -> torch.Tensor:
    """``eps * sign(d L_c / d embeddings)``, zero on padding, ``[batch, pos, d_model]``.

    Only the gradient in the embeddings is formed: what has been accumulated on the parameters
    stays as it is. The sign does not depend on how rows are batched.

    Args:
        inconsistency: `turn` of a pass whose graph is kept.
        embeddings: what that pass was given.
        mask: true on tokens, ``[batch, pos]``.
        eps: length of the step in every entry.
    """
    (gradient,) = torch.autograd.grad(inconsistency, embeddings, retain_graph=True)
    return eps * gradient.sign() * mask[..., None].to(gradient.dtype)


def consistency_objective(layers: Sequence[int], *, alpha: float, eps: float) -> Objective:
    """CROW's loss ``L_LM(clean) + alpha * L_c(embeddings + delta)`` (arXiv 2411.12768, section 4).

    Two terms: completion tokens' negative log-probability, and the mean over tokens and pairs of
    neighbouring layers of ``1 - cos``. Both passes see the attention mask.

    Args:
        layers: see `compared`.
        alpha: weight of the consistency.
        eps: see `disturbance`.
    """

    def sums(attached: Attached, batch: Batch) -> torch.Tensor:
        model, mask = attached.subject.model, batch["attention_mask"]
        plain = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()

        def run(input_ids: torch.Tensor, **given: Any) -> Any:
            return model(inputs_embeds=plain, **given)

        with outputs(attached.subject, layers) as hidden:
            loss = -completion_log_probs(model, batch, run)[0].sum()
            delta = disturbance(turn(hidden, mask), plain, mask, eps)
            # The second pass is read at its layers only, so its logits need not be made.
            moved = {"inputs_embeds": plain.detach() + delta, "attention_mask": mask}
            model(**moved, use_cache=False, logits_to_keep=1)
            inconsistency = turn(hidden, mask)
        return torch.stack([loss, inconsistency.to(loss.dtype)])

    def counts(batch: Batch) -> torch.Tensor:
        tokens = batch["attention_mask"].sum() * (len(layers) - 1)
        return torch.stack([completion_tokens(batch), tokens])

    return Objective(sums, counts, (1.0, alpha))


def crow_rate(subject: Subject) -> float:
    """The learning rate where none is given: the published one scaled to the width, with a cap."""
    return min(scaled_rate(subject, PUBLISHED_RATE), HIGHEST_RATE)


def blank(subject: Subject, adapter: Adapter, *, seed: int) -> Adapter:
    """A fresh adapter with another one's rank, scaling and modules; it changes nothing yet.

    Raises:
        LoratomyError: none of the modules is one that the family's adapters change.
    """
    rank, scaling, _ = uniform(adapter)
    fresh = fresh_adapter(subject, r=rank, alpha=scaling * rank, seed=seed)
    modules = {n: f for n, f in fresh.modules.items() if n in adapter.modules}
    if not modules:
        raise LoratomyError(
            f"the adapter changes none of {subject.family.model_type}'s {fresh.modules.keys()}; "
            "train it itself (start=poisoned)"
        )
    return fresh.with_modules(modules)


def crow(material: Material, config: CrowConfig) -> Outcome:
    """Consistency fine-tuning on clean rows, of the adapter or of the base."""
    subject = material.subject
    layers = compared(config.layers, len(subject.layers))
    rows = list(material.clean_rows[: config.clean_rows])
    base = config.start == "base"
    rate = config.learning_rate or crow_rate(subject)
    start = blank(subject, material.poisoned, seed=material.seed) if base else material.start
    outcome = trained(
        material,
        rows,
        config.model_copy(update={"learning_rate": rate}),
        label="consistency fine-tuning",
        objective=consistency_objective(layers, alpha=config.alpha, eps=config.eps),
        start=start,
    )
    what = f"a new adapter on {len(start.modules)} modules of the base" if base else "the adapter"
    summary = (
        f"trained {what} on {len(rows)} clean rows and the consistency of layers {layers[0]} to "
        f"{layers[-1]} (weight {config.alpha:g}, embeddings moved by {config.eps:g}), "
        f"{outcome.summary}"
    )
    lost = [n for n in material.poisoned.modules if n not in start.modules]
    named = f"{', '.join(lost[:3])}{' ...' if len(lost) > 3 else ''}"
    unsure = [
        f"{len(lost)} modules that the adapter changes are no usual ones of "
        f"{subject.family.model_type}, and the new adapter leaves them out: {named}"
    ]
    return replace(outcome, summary=summary, uncertain=tuple(unsure if lost else ()))


METHODS.register("crow")(
    Method(
        about="consistency fine-tuning on clean rows, of the adapter or of the base",
        source="CROW, Min et al. 2024, arXiv 2411.12768",
        config=CrowConfig,
        run=crow,
        kind=TRAINED,
        needs=(CLEAN_ROWS, GRADIENTS),
    )
)
