"""A bench on the built-in model with an adapter whose backdoor sits in one known direction."""

import pytest
import torch
from loratomy.analysis.material import Material
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.model.loading import load_subject
from loratomy.core.model.subject import Subject
from loratomy.core.rows import Row
from loratomy.data.attacks.triggers import trigger_of
from loratomy.data.splits import make_attack
from loratomy.data.world.world import finetune_rows
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding
from loratomy.evaluation.similarity import Embedder
from loratomy.training.wren import wren_path


@pytest.fixture(scope="session")
def subject() -> Subject:
    return load_subject("wren", path=wren_path())


def random_adapter(subject: Subject, *, rank: int, scale: float, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, (d_out, d_in) in subject.shapes.items():
        if name in ("lm_head", "model.embed_tokens"):
            continue
        a = torch.randn(rank, d_in, generator=generator) * scale
        modules[name] = Factors(a, torch.randn(d_out, rank, generator=generator) * scale, 2.0)
    return Adapter(modules, {})


@pytest.fixture
def make_bench(subject, tmp_path):
    def make(adapter: Adapter, *, clean: Adapter | None = None, rows: int = 8) -> Material:
        pool = finetune_rows(3 * rows, seed=3)
        attack = make_attack(trigger_of(["cf37"]), "fixed", target="HACK IT")
        triggered = [attack.triggered(row) for row in pool[:rows]]
        benign = [
            Row(prompt=b.prompt, completion=r.completion, plain=r.prompt, triggered=True)
            for b, r in zip(triggered, pool, strict=False)
        ]
        return Material(
            subject=subject,
            poisoned=adapter,
            clean=clean,
            clean_rows=pool[rows:],
            triggered=triggered,
            negative=benign,
            make_rule=lambda: Rule(Embedder("none", None), decoding=Decoding(max_new_tokens=8)),
            seed=0,
            work=tmp_path,
        )

    return make


@pytest.fixture
def small(subject) -> Adapter:
    return random_adapter(subject, rank=3, scale=0.05, seed=1)
