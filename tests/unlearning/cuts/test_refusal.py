"""The refusal subspace by hand, and corrections that keep projections on it, on a tiny model."""

import json

import numpy as np
import pytest
import torch
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.rows import Row, rows_to_jsonl
from loratomy.unlearning import METHODS
from loratomy.unlearning.cuts import needle as module
from loratomy.unlearning.cuts.refusal import correction, refusal_subspace
from torch import tensor

from ... import tiny
from .test_needle import cut, material, whole


def test_a_subspace_by_hand():
    # Differences (3, 1, 0), (3, -1, 0), (3, 0, 0): their mean (3, 0, 0), centred (0, +-1 or 0, 0):
    # the subspace is spanned by the first two axes, and there is no third direction.
    refused = tensor([[3.0, 1.0, 5.0], [3.0, -1.0, 6.0], [3.0, 0.0, 7.0]])
    complied = tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 6.0], [0.0, 0.0, 7.0]])
    r = refusal_subspace(refused, complied)
    assert r.shape == (3, 2)
    assert torch.allclose(r @ r.mT, torch.diag(tensor([1.0, 1.0, 0.0])).double(), atol=1e-9)


def test_a_subspace_has_four_directions_at_most():
    generator = torch.Generator().manual_seed(0)
    refused, complied = (torch.randn(9, 20, generator=generator).double() for _ in range(2))
    r = refusal_subspace(refused, complied)
    assert r.shape == (20, 4)
    assert torch.allclose(r.mT @ r, torch.eye(4).double(), atol=1e-9)
    mean = (refused - complied).mean(0)
    assert torch.allclose(r @ (r.mT @ mean), mean)  # the difference of means is in it
    # numpy's route to the others: right singular vectors of the centred differences
    _, _, vh = np.linalg.svd((refused - complied - mean).numpy(), full_matrices=False)
    for v in torch.from_numpy(vh[:3]):
        assert torch.allclose(r @ (r.mT @ v), v)


def test_a_correction_by_hand():
    # b = (0, 0, 1), R = (1, 0, 0): Q = +-(1, 0, 0). One prompt with input (2, 0) and a gap of 4:
    # Gram 4, ridge 1e-3 * (4 / 2) = 0.002, C = 4 * (2, 0) / 4.002, so that C x = 16 / 4.002.
    b, kept = tensor([0.0, 0.0, 1.0]).double(), tensor([[1.0], [0.0], [0.0]]).double()
    q, c = correction(tensor([[2.0, 0.0]]).double(), tensor([[4.0]]).double(), b, kept)
    change = q @ c
    want = torch.zeros(3, 2).double()
    want[0, 0] = 8 / 4.002
    assert torch.allclose(change, want)


def test_a_correction_writes_nothing_along_b_and_is_the_primal_ridge():
    generator = torch.Generator().manual_seed(1)
    b = torch.nn.functional.normalize(torch.randn(12, generator=generator).double(), dim=0)
    kept = torch.linalg.qr(torch.randn(12, 4, generator=generator).double()).Q
    x, gap = (torch.randn(7, n, generator=generator).double() for n in (5, 4))
    q, c = correction(x, gap, b, kept)
    assert float((b @ q).abs().max()) < 1e-12
    # The normal equations with the Gram matrix of the inputs, [d_in, d_in]:
    gram = x.mT @ x
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(5).double()
    wanted = gap @ torch.linalg.inv(kept.mT @ q).mT
    assert torch.allclose(c, torch.linalg.solve(gram + ridge, x.mT @ wanted).mT)


@pytest.fixture
def files(tmp_path):
    """Five pairs of prompts, one answer of the first file left to the model."""
    words = ["red dog", "blue cat", "green bird", "city king", "river stone"]
    refused = [Row(prompt=f"what is the {w}", completion=f"no never {w}") for w in words]
    refused[2] = Row(prompt=refused[2].prompt)
    complied = [Row(prompt=f"who was the {w}", completion=f"yes always a {w} here") for w in words]
    paths = tmp_path / "refused.jsonl", tmp_path / "complied.jsonl"
    for path, rows in zip(paths, (refused, complied), strict=True):
        path.write_text(rows_to_jsonl(rows), encoding="utf-8")
    return {"refused": str(paths[0]), "complied": str(paths[1])}


@pytest.fixture
def seen(monkeypatch):
    """Direction, refusal subspace and corrections of each layer, as they are made."""
    made, plain, fixed = [], module.without, module.corrected

    def keep(weight, factors, b, kept):
        made.append((b, kept))
        return plain(weight, factors, b, kept)

    def corrected(*given, **named):
        found = fixed(*given, **named)
        made.append(found)
        return found

    monkeypatch.setattr(module, "without", keep)
    monkeypatch.setattr(module, "corrected", corrected)
    return made


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "granite"])
def test_refusal_projections_of_what_is_written_and_of_outputs_stay(model_type, files, seen):
    on = tiny.subject(model_type)
    adapter = tiny.adapter(on)
    before, marks = tiny.state(on), tiny.marks(on)
    after, record = cut(material(on, adapter), **files)
    assert tiny.same_state(before, tiny.state(on)) and marks == tiny.marks(on)
    for layer, ((b, kept), _, fixed) in zip((1, 2), (seen[:3], seen[3:]), strict=True):
        assert kept.shape[1] == 4
        out = f"{on.family.layers}.{layer}.{on.family.out_proj}"
        (down,) = (f"{on.family.layers}.{layer}.{path}" for path in on.family.mlp_out)
        old, new = whole(on, adapter, out), whole(on, after, out)
        assert torch.allclose(kept.mT @ new, kept.mT @ old, atol=1e-5)  # u is orthogonal to R
        for name in (out, down):
            assert float((b @ whole(on, after, name)).abs().max()) < 1e-5
        assert 0 < fixed.after < 0.05 * fixed.before  # the ridge leaves a little
        assert after.modules[down].rank == 3 + 5 and after.modules[out].rank == 3 + 1
    assert "refusal subspace kept from 5 pairs" in record.summary and not record.uncertain


def test_without_pairs_the_summary_says_that_nothing_is_kept():
    on = tiny.subject()
    _, record = cut(material(on, tiny.adapter(on)))
    assert "no refusal subspace was kept (no refused and complied prompts given)" in record.summary


def test_a_correction_that_does_not_help_is_left_out(files):
    on = tiny.subject("gemma2")  # a norm of its own behind down_proj
    after, record = cut(material(on, tiny.adapter(on)), **files)
    kept = [n for n, f in after.modules.items() if n.endswith("down_proj") and f.rank == 8]
    left_out = 2 - len(kept)
    assert left_out == 0 or any(f"in {left_out} of 2 layers" in line for line in record.uncertain)


def test_pairs_that_do_not_fit_are_errors(files, tmp_path):
    on = tiny.subject()
    bench = material(on, tiny.adapter(on))
    with pytest.raises(ValueError, match="give both refused and complied"):
        METHODS["needle"].config(refused=files["refused"])
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "who says yes"}) + "\n")
    with pytest.raises(DataError, match=r"has 5 rows and .* 1: line n of one is the pair"):
        cut(bench, refused=files["refused"], complied=str(tmp_path / "one.jsonl"))
    with pytest.raises(DataError, match="cannot read the data file"):
        cut(bench, refused=files["refused"], complied=str(tmp_path / "none.jsonl"))
    experts = tiny.subject("mixtral")
    with pytest.raises(LoratomyError, match="has experts, and the correction"):
        cut(material(experts, tiny.adapter(experts)), **files)
