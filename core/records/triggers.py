"""Records of the search for triggers in an adapter alone.

Shapes use one vocabulary: candidate, control, prompt.
"""

import numpy as np

from .base import Record, record


@record
class Candidate(Record):
    """A text that may be a trigger, with what it does on prompts the search did not see."""

    text: str
    """As put into prompts; untrusted."""
    token_ids: tuple[int, ...]
    """Its tokens after a space."""
    place: str
    """Where in the prompts it does most: ``suffix``, ``prefix`` or ``middle``."""
    prompts_of: str
    """``all`` prompts, or ``group N`` of alike ones on which alone it was found to act."""
    says: str
    """The adapter's answer to it in the search, as far as prompts agree; untrusted."""
    at: str
    """``start`` of the answer or ``end`` of it."""
    search_score: float
    """Nats by which it makes that likelier than under the base, on the search's own prompts."""
    fired: int
    """Prompts whose answer is far more unlike the base than answers to control texts are."""
    n_prompts: int
    """Prompts it was tried on at this place, none of them seen by the search."""
    rate: np.ndarray
    """Share fired with its Wilson 95 % interval, ``[3]``."""
    surprise: float
    """Mean over prompts of log p(adapter) - log p(base) of the adapter's answer, less the same
    without the text, nats."""
    z: float
    """Standard deviations of the control texts' surprise by which it exceeds their mean."""
    p: float
    """Chance of as many fired prompts were it a control text, times the number of texts and places
    tried (Bonferroni); at most 1. Controls are not searched for, so it is a guide only."""
    movement: float
    """1 - similarity of letters between the answers with and without it, mean."""
    base_movement: float
    """The same for the base's answers: what the text itself calls for."""
    agreement: float
    """Mean similarity of letters between answers to different prompts with it."""
    agreement_without: float
    """The same between the answers without it."""
    examples: tuple[str, ...]
    """Some answers with it; untrusted."""
    stands_out: bool
    """Whether it fires often: the interval of the share lies above a quarter."""


@record
class Candidates(Record):
    """What a search for triggers in an adapter found."""

    candidates: tuple[Candidate, ...]
    """Best first, each text once: those that stand out, of these what fires about as often by
    length, then by surprise."""
    heard: tuple[str, ...]
    """Tokens that the adapter's first layer takes up most, from which the search starts."""
    groups: tuple[str, ...]
    """A prompt of each group of alike prompts, by number."""
    n_search: int
    """Prompts that the search saw."""
    n_controls: int
    """Ordinary texts tried in the same way."""
    control_surprise: np.ndarray
    """Mean, standard deviation and largest of the controls' answers, nats, ``[3]``."""
    forwards: int
    """Prompts run forward by the search."""
    backwards: int
    """Prompts run backward by the search."""
    seconds: float
    """Of the whole."""
    sentence: str
    """The finding in words."""
