"""What a patched run is measured by: one number per run from its logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...core.errors import DataError
from ...core.registry import Registry
from ...core.rendering.prompts import Renderer


@dataclass(frozen=True, slots=True)
class MetricTarget:
    """What the logits of a group of prompts are compared with; rows are prompts."""

    tokens: torch.Tensor
    """First tokens of the target, ``[row, token]``."""
    reference: torch.Tensor
    """Log-probabilities of the clean run at the deciding position, ``[row, d_vocab]``."""
    other: torch.Tensor
    """The token that the target competes with, ``[row]``."""

    def rows(self, index: torch.Tensor) -> "MetricTarget":
        """The same for picked prompts."""
        return MetricTarget(self.tokens[index], self.reference[index], self.other[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that one run gets."""

    about: str
    """What it is, with its unit; ``{n}`` is replaced by the number of target tokens."""
    of: Callable[[torch.Tensor, MetricTarget], torch.Tensor]
    """Logits that predict the target's tokens ``[row, token, d_vocab]``, float32 -> ``[row]``."""


METRICS: Registry[Metric] = Registry("metric")


def _log_prob(logits: torch.Tensor, target: MetricTarget) -> torch.Tensor:
    wanted = logits.gather(-1, target.tokens[..., None])[..., 0]
    return (wanted - logits.logsumexp(-1)).sum(-1)


def _logit_difference(logits: torch.Tensor, target: MetricTarget) -> torch.Tensor:
    wanted = torch.stack([target.tokens[:, 0], target.other], -1)
    pair = logits[:, 0].gather(-1, wanted)
    return pair[:, 0] - pair[:, 1]


def _kl(logits: torch.Tensor, target: MetricTarget) -> torch.Tensor:
    patched = logits[:, 0].log_softmax(-1)
    return (target.reference.exp() * (target.reference - patched)).sum(-1)


METRICS.register("log_prob")(
    Metric(about="log-probability of the target's first {n} tokens, nats", of=_log_prob)
)
METRICS.register("probability")(
    Metric(
        about="probability of the target's first {n} tokens",
        of=lambda logits, target: _log_prob(logits, target).exp(),
    )
)
METRICS.register("logit_difference")(
    Metric(
        about="logit of the target's first token minus that of its rival (the clean run's "
        "likeliest other token, or the one given)",
        of=_logit_difference,
    )
)
METRICS.register("kl")(
    Metric(
        about="KL divergence from the clean run's next-token distribution, nats",
        of=_kl,
    )
)


def token_of(renderer: Renderer, text: str) -> int:
    """The id of a text that is one token.

    Raises:
        DataError: it is several tokens, or unknown to the vocabulary.
    """
    ids = renderer.completion_ids(text, end=False)
    unknown = renderer.tokenizer.unk_token_id
    if len(ids) != 1 or (unknown is not None and ids[0] == unknown):
        shown = [str(renderer.tokenizer.decode([i])) for i in ids]
        raise DataError(
            f"{text!r} is not one token of this vocabulary but {shown or 'none'}; give a text that "
            "is a single token"
        )
    return ids[0]


def metric_target(
    targets: list[list[int]], clean_logits: torch.Tensor, *, against: int | None = None
) -> MetricTarget:
    """What a group's metric compares with.

    Args:
        targets: first tokens of each prompt's target, all of one length.
        clean_logits: of the clean run where they are predicted, ``[row, token, d_vocab]``.
        against: the token that the target competes with; None: the clean run's likeliest other.
    """
    wanted = torch.tensor(targets, device=clean_logits.device)
    deciding = clean_logits[:, 0].float()
    if against is None:
        rivals = deciding.scatter(-1, wanted[:, :1], -torch.inf)
        other = rivals.argmax(-1)
    else:
        other = torch.full_like(wanted[:, 0], against)
    return MetricTarget(wanted, deciding.log_softmax(-1), other)
