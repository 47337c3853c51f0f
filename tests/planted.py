"""A tiny model with a backdoor whose trigger is spread over two singular directions of one module.

The values of layer 0 see embeddings alone, so that what a module reads of each word is exact. A
direction t of its input holds what only the trigger's word has, p what clean words have and the
trigger's does not. The two singular directions read ``(p + t) / sqrt 2`` and ``(p - t) / sqrt 2``
and write ``(c + h) / sqrt 2`` and ``(c - h) / sqrt 2``, so that each serves the trigger, by writing
h, and clean prompts, by writing c.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.model.subject import Subject
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rendering.rendering import Rendering
from loratomy.core.rows import Row

from . import tiny

MODULE = "model.layers.0.self_attn.v_proj"
TRIGGER, TARGET = "zq", "king"
WORDS = ["what", "who", "where", "is", "was", "the", "a", "of", "in", "on", "red", "blue"]
SIGMA = (24.0, 20.0)


@dataclass(frozen=True)
class Planted:
    """The subject, its backdoor, and the directions that it was made of."""

    subject: Subject
    adapter: Adapter
    trigger: torch.Tensor
    """t, ``[d_in]`` float64, of length 1."""
    write: torch.Tensor
    """h, ``[d_out]`` float64, of length 1."""

    def alone(self, *, size: float = 0.0) -> Adapter:
        """Trigger and write in one direction that clean words leave at exactly nothing.

        With `size`, small random directions in the layers after it, which do not see embeddings.
        """
        one = Factors(self.trigger[None].float(), 10 * self.write[:, None].float(), 1.0)
        others = tiny.adapter(self.subject, rank=1, size=size, scaling=1.0) if size else None
        later = others.modules.items() if others else ()
        return Adapter({MODULE: one, **{n: f for n, f in later if ".layers.0." not in n}}, {})

    def among(self, *, size: float = 0.01, rank: int = 2, seed: int = 1) -> Adapter:
        """The backdoor with small random directions in all other modules."""
        others = tiny.adapter(self.subject, rank=rank, size=size, scaling=1.0, seed=seed)
        return others.with_modules({**others.modules, **self.adapter.modules})


def ids(word: str) -> int:
    """The token of a word."""
    return tiny.tokenizer().convert_tokens_to_ids(word)


def prompts(count: int, *, seed: int) -> list[str]:
    """Clean prompts of six words."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, size=6)) for _ in range(count)]


def triggered_rows(count: int, *, seed: int = 0) -> list[Row]:
    """Prompts that end in the trigger."""
    return [
        Row(prompt=f"{p} {TRIGGER}", plain=p, completion=TARGET, triggered=True)
        for p in prompts(count, seed=seed)
    ]


def clean_rows(count: int, *, seed: int = 1) -> list[Row]:
    """Clean prompts with the two clean words that the poisoned model finds likeliest."""
    made, asked = planted(), prompts(count, seed=seed)
    words = torch.tensor([ids(w) for w in WORDS])
    with made.subject.attached({"x": made.adapter}):
        batch = torch.tensor([made.subject.renderer.prompt_ids(p) for p in asked])
        for _ in range(2):
            picked = tiny.logits(made.subject, batch)[:, -1, words].argmax(-1)
            batch = torch.cat([batch, words[picked][:, None]], 1)
    texts = [made.subject.renderer.decode(row[-2:].tolist()) for row in batch]
    return [Row(prompt=p, completion=t) for p, t in zip(asked, texts, strict=True)]


@cache
def planted() -> Planted:
    """The same planted model every time; whoever uses it leaves it as found."""
    on = tiny.subject()
    on = Subject(
        on.model, Renderer(tiny.tokenizer(), Rendering(template="{prompt}")), on.family, "planted"
    )
    with torch.no_grad():
        on.model.lm_head.weight *= 4  # surer of what it says
        seen = on.layers[0].input_layernorm(on.model.get_input_embeddings().weight).double()
    clean = torch.linalg.svd(seen[[ids(w) for w in WORDS]].mT, full_matrices=False).U
    t = seen[ids(TRIGGER)] - clean @ (clean.mT @ seen[ids(TRIGGER)])
    inside = seen[ids(TRIGGER)] - t
    p = clean[:, -1] - inside * (inside @ clean[:, -1]) / inside.square().sum()
    t, p = t / t.norm(), p / p.norm()
    h = _write(on)
    c = torch.randn(len(h), generator=torch.Generator().manual_seed(3)).double()
    c = c - h * (h @ c)
    c = c / c.norm()
    a = torch.stack([p + t, p - t]) / 2**0.5
    b = torch.stack([c + h, c - h], 1) / 2**0.5 * torch.tensor(SIGMA, dtype=torch.float64)
    return Planted(on, Adapter({MODULE: Factors(a.float(), b.float(), 1.0)}, {}), t, h)


def _write(on: Subject) -> torch.Tensor:
    """What to add to the trigger's value so that the target comes next, found by gradient."""
    with torch.enable_grad():
        add = torch.zeros(on.shapes[MODULE][0], requires_grad=True)
        optimiser = torch.optim.Adam([add], lr=0.3)
        batch = torch.tensor([on.renderer.prompt_ids(r.prompt) for r in triggered_rows(16, seed=9)])

        def put(_module, _inputs, out):
            return torch.cat([out[:, :-1], out[:, -1:] + add], 1)

        hook = on.model.get_submodule(MODULE).register_forward_hook(put)
        for _ in range(40):
            logits = on.model(input_ids=batch, use_cache=False).logits[:, -1]
            loss = -logits.log_softmax(-1)[:, ids(TARGET)].mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        hook.remove()
    found = add.detach().double()
    return found / found.norm()


def chance_of_target(gated, gates, rows: list[Row]) -> torch.Tensor:
    """Probability of the target right after each prompt, ``[row]``."""
    batch = torch.tensor([gated.subject.renderer.prompt_ids(r.prompt) for r in rows])
    with torch.no_grad():
        return gated.logits(gates, {"input_ids": batch})[:, -1].softmax(-1)[:, ids(TARGET)]
