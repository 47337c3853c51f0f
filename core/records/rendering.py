"""The record of how a rendering was found: what was tried, and how likely it made what is known."""

from .base import Record, record


@record
class Tried(Record):
    """One rendering that was tried."""

    about: str
    """In words."""
    targets: float
    """Mean log-probability of the attack's targets after triggered prompts, nats a token; NaN
    without any."""
    answers: float
    """The same of the reference answers to clean prompts; NaN without any."""
    behind: float
    """How much less likely than under the best one, nats a token: the mean over targets and answers
    (those that the adapter knows), a probability p a token counted as ``(p + 0.05) / 1.05``."""
    error: float
    """Standard error of that, over rows."""


@record
class RenderingChoice(Record):
    """Which rendering a run takes, and why."""

    chosen: str
    """In words."""
    reason: str
    """``given``, ``recorded`` beside the adapter, ``likeliest``, or ``nothing`` to compare."""
    tried: tuple[Tried, ...]
    """The chosen one first, then those of another form that were compared at last; empty where none
    were."""
    close: bool
    """Whether the data does not decide: another one is about as likely, targets and answers fit
    different ones, or the adapter knows neither."""
    n_targets: int
    """Triggered rows behind the comparison."""
    n_answers: int
    """Clean rows behind it."""
    ends: tuple[str, ...]
    """Tokens that end an answer, the one that closes it in training first."""
    end_log_prob: float
    """Mean log-probability of that one after known answers, nats; NaN where none are known."""
    prompt: str
    """The first prompt as its tokens read, special tokens visible."""
    completion: str
    """Its completion, likewise."""
    sentence: str
    """What is printed."""
