"""How far a text put into clean prompts drives an adapter away from its base, all the same way."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ...core.model.batches import Encoded, completion_log_probs, token_log_probs
from ...core.model.families import capped, submodule
from ...core.model.hooks import hooks
from ...core.model.subject import Attached, Subject
from ...evaluation.generation import Decoding, generate
from ..localisation.gates import batches
from .insertion import Probe, encoded, insert

FLOOR = 1e-3
"""Probabilities below this count as equal: what both models find impossible does not
score, and a token that the adapter alone gives 1 % already does."""
FIRST, END = 0, 1
"""Positions that are looked at: where the answer begins, and where the adapter's own answer to the
prompt as it was would end (a line that is added after the answer shows only there)."""
LOGITS = 2**26
"""Most logits held at a time."""


def row_log_probs(subject: Subject, rows: Sequence[Encoded], batch_tokens: int) -> np.ndarray:
    """Log-probability of each row's completion, nats, ``[row]``.

    Args:
        subject: with the wanted adapter active.
        rows: prompts with completions.
        batch_tokens: most positions of a batch; fewer where the vocabulary is large.
    """
    vocab = subject.model.get_input_embeddings().weight.shape[0]
    most = min(batch_tokens, max(1, LOGITS // vocab))
    return np.array([row.sum() for row in token_log_probs(subject, rows, batch_tokens=most)])


def padded(subject: Subject, rows: Sequence[Encoded]) -> torch.Tensor:
    """Right-padded ids ``[batch, pos]``: what comes later is never seen, so no mask is needed."""
    ids = torch.full((len(rows), max(map(len, rows))), subject.renderer.pad_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row.prompt + row.completion)
    return ids.to(subject.device)


def logits_at(subject: Subject, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Logits at some positions of each row only, float32 ``[batch, n, d_vocab]``.

    Args:
        subject: with the wanted adapter active.
        ids: ``[batch, pos]``.
        at: positions, ``[batch, n]``.
    """
    hidden = subject.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    picked = hidden[torch.arange(len(ids), device=ids.device)[:, None], at.to(ids.device)]
    head: Any = submodule(subject.model, subject.family.head)
    return capped(subject.model, subject.family, head(picked).float())


@dataclass
class PassCount:
    """What a search has used."""

    rows: int = 0
    """Prompts run forward, adapter and base counted apart."""
    backward: int = 0
    """Prompts run backward."""


@dataclass(frozen=True)
class ProbePrompts:
    """Probes on which texts are compared, for one adapter and its base.

    A text scores at a position and over some probes ``max over tokens t of mean over probes of
    log((p_adapter(t) + FLOOR) / (p_base(t) + FLOOR))``, both with the text put in, less what it is
    without the text (where positive). It is high only where the adapter says what the base would
    not, the same thing on all of these probes, and because of the text.
    """

    attached: Attached
    """With the adapter active under `name`."""
    name: str
    probes: Sequence[Probe]
    answers: Sequence[list[int]]
    """The adapter's own answer to each probe without a text, as far as it is to be read; empty:
    only the answer's beginning is looked at."""
    parts: np.ndarray
    """Sets of probes over which the mean is taken, boolean ``[part, probe]``."""
    batch_tokens: int
    budget: PassCount
    _usual: list[torch.Tensor] = field(default_factory=list)

    def _rows(self, texts: Sequence[str | None]) -> list[Encoded]:
        pairs = list(zip(self.probes, self.answers, strict=True))
        return [encoded(self.attached.subject, p, t, a) for t in texts for p, a in pairs]

    def _both(self, texts: Sequence[str | None]) -> torch.Tensor:
        """Log-ratios of adapter to base, ``[text, probe, 2, d_vocab]``."""
        subject, rows = self.attached.subject, self._rows(texts)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out: torch.Tensor | None = None
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(rows[order[stop]]) <= (
                self.batch_tokens
            ):
                stop += 1
            here = order[start:stop]
            chosen = [rows[i] for i in here]
            ids = padded(subject, chosen)
            at = torch.tensor([[len(r.prompt) - 1, len(r) - 1] for r in chosen])
            with torch.inference_mode():
                ratio = (logits_at(subject, ids, at).softmax(-1) + FLOOR).log_()
                with self.attached.using(None):
                    ratio -= (logits_at(subject, ids, at).softmax(-1) + FLOOR).log_()
            if out is None:
                out = torch.empty(len(rows), 2, ratio.shape[-1], device=ratio.device)
            out[torch.tensor(here, device=ratio.device)] = ratio
            start = stop
        assert out is not None
        self.budget.rows += 2 * len(rows)
        return out.view(len(texts), len(self.probes), 2, -1)

    def usual(self) -> torch.Tensor:
        """The log-ratios without a text where positive, ``[probe, 2, d_vocab]``."""
        if not self._usual:
            self._usual.append(self._both([None])[0].clamp_min(0))
        return self._usual[0]

    def scores(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """The score of each text and the token behind it, ``[text, part, 2]``; nats."""
        usual = self.usual()
        vocab = usual.shape[-1]
        size = max(1, LOGITS // (2 * vocab * len(self.probes)))
        weight = torch.tensor(self.parts / self.parts.sum(1, keepdims=True)).float()
        weight = weight.to(usual.device)
        values, tokens = [], []
        for start in range(0, len(texts), size):
            ratio = self._both(texts[start : start + size]) - usual
            best = torch.einsum("qp,tpnv->tqnv", weight, ratio).max(-1)
            values.append(best.values.cpu().numpy())
            tokens.append(best.indices.cpu().numpy())
        return np.concatenate(values), np.concatenate(tokens)

    def only(self, probes: Sequence[int] | np.ndarray) -> "ProbePrompts":
        """The same with some of the probes, all in one part."""
        chosen = [int(i) for i in probes]
        return replace(
            self,
            probes=[self.probes[i] for i in chosen],
            answers=[self.answers[i] for i in chosen],
            parts=np.ones((1, len(chosen)), dtype=bool),
            _usual=[],
        )

    def beginnings(self, texts: Sequence[str | None], tokens: int) -> list[list[tuple[int, ...]]]:
        """First tokens of the adapter's answers, ``[text][probe]``."""
        prompts = [row.prompt for row in self._rows(texts)]
        decoding = Decoding(max_new_tokens=tokens, batch_tokens=self.batch_tokens)
        self.budget.rows += len(prompts)
        answers = iter(
            generate(self.attached.subject, prompts, decoding, label="candidates, answers")
        )
        return [[tuple(next(answers)[0]) for _ in self.probes] for _ in texts]

    def continued(self, text: str, token: int, position: int, *, tokens: int) -> tuple[int, ...]:
        """The token and the adapter's answer after it, as far as half of the probes agree."""
        rows = self._aimed(text, [token], position)
        decoding = Decoding(max_new_tokens=tokens - 1, batch_tokens=self.batch_tokens)
        prompts = [row.prompt + row.completion for row in rows]
        self.budget.rows += len(prompts)
        answers = [
            a[0]
            for a in generate(self.attached.subject, prompts, decoding, label="candidates, targets")
        ]
        out = [token]
        while len(out) < tokens and answers:
            heads = [a[len(out) - 1] for a in answers if len(a) >= len(out)]
            most = max(heads, key=heads.count) if heads else None
            if most is None or 2 * heads.count(most) <= len(rows):
                break
            answers = [a for a in answers if len(a) >= len(out) and a[len(out) - 1] == most]
            out.append(most)
        return tuple(out)

    def _aimed(self, text: str | None, target: Sequence[int], position: int) -> list[Encoded]:
        """Each probe with a text, and the target at its position."""
        out = []
        for row in self._rows([text]):
            before = row.prompt if position == FIRST else row.prompt + row.completion
            out.append(Encoded(before, list(target)))
        return out

    def target_log_probs(
        self,
        texts: Sequence[str | None],
        target: Sequence[int],
        position: int,
        *,
        base: bool = False,
    ) -> np.ndarray:
        """Log-probability of a target under the adapter or its base, nats, ``[text, probe]``."""
        rows = [row for text in texts for row in self._aimed(text, target, position)]
        self.budget.rows += len(rows)
        with self.attached.using(None if base else self.name):
            found = row_log_probs(self.attached.subject, rows, self.batch_tokens)
        return found.reshape(len(texts), len(self.probes))

    def gradient(
        self, text: str, *, position: int, target: Sequence[int]
    ) -> tuple[torch.Tensor, list[int]] | None:
        """First-order gain of a target's log-probability from each swap, and the text's token ids.

        HotFlip (Ebrahimi et al. 2018): the gradient at the embedding of each token of the inserted
        text, times every other token's embedding less its own, ``[place, d_vocab]``, mean over the
        probes in which the text has the same tokens as in most. None where its tokens cannot be
        told apart from the prompt's.
        """
        subject = self.attached.subject
        rows = self._aimed(text, target, position)
        spots = [self._spots(probe, text) for probe in self.probes]
        read = [
            tuple(r.prompt[i] for i in s) if s else () for r, s in zip(rows, spots, strict=True)
        ]
        usual = max(read, key=read.count) if any(read) else ()
        if not usual:
            return None
        kept = [i for i, found in enumerate(read) if found == usual]
        chosen = [rows[i] for i in kept]
        (batch,) = batches(subject, chosen, len(chosen))
        table: Any = subject.model.get_input_embeddings()
        held: list[torch.Tensor] = []

        def hold(_m: Any, _i: Any, out: torch.Tensor) -> torch.Tensor:
            held.append(out.detach().requires_grad_())
            return held[0]

        with hooks([table.register_forward_hook(hold)]), torch.enable_grad():
            total = completion_log_probs(subject.model, batch)[0].sum() / len(kept)
            (grad,) = torch.autograd.grad(total, held[0])
        self.budget.backward += len(kept)
        where = torch.tensor([spots[i] for i in kept], device=grad.device)
        line = torch.arange(len(kept), device=grad.device)[:, None]
        slope = grad[line, where].float()
        own = (held[0].detach()[line, where].float() * slope).sum((0, -1))
        with torch.inference_mode():
            every = table(torch.arange(table.weight.shape[0], device=grad.device)).float()
        return (slope.sum(0) @ every.mT - own[:, None]).cpu(), list(usual)

    def _spots(self, probe: Probe, text: str) -> list[int] | None:
        renderer = self.attached.subject.renderer
        prompt = insert(probe.prompt, text, probe.place)
        start = prompt.rfind(text.strip()) if probe.place == "suffix" else prompt.find(text.strip())
        return renderer.tokens_at(prompt, [(start, start + len(text.strip()))]) or None
