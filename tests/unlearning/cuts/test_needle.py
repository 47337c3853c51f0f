"""NEEDLE by hand arithmetic, against dense float64 weights, and as an adapter of rank r + 1."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.analysis.material import Material
from loratomy.core.adapter.factors import Adapter, Factors, layer_of, write_adapter
from loratomy.core.errors import AdapterError, DataError, LoratomyError
from loratomy.core.model.variant import base_weight
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding
from loratomy.evaluation.similarity import Embedder
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.controls import same_change
from loratomy.unlearning.cuts import needle as module
from loratomy.unlearning.cuts.needle import backdoor_direction, chosen_layers, without
from loratomy.unlearning.cuts.responses import own_answers
from torch import tensor

from ... import tiny

NONE = torch.zeros(2, 0).double()


def material(on, adapter: Adapter, **changes) -> Material:
    made = Material(
        subject=on,
        poisoned=adapter,
        clean_rows=tiny.clean_rows(),
        triggered=tiny.rows(),
        make_rule=lambda: Rule(Embedder("none", None), decoding=Decoding(max_new_tokens=6)),
        seed=0,
    )
    return replace(made, **changes)


def cut(bench: Material, name: str = "needle", **options):
    outcome, record = operate(name, bench, METHODS[name].config(**options))
    return outcome.adapter, record


def whole(on, adapter: Adapter, name: str) -> torch.Tensor:
    """W + dW in float64."""
    base = base_weight(on, name).double()
    found = adapter.modules.get(name)
    return base if found is None else base + found.scaling * found.b.double() @ found.a.double()


# The formulas, by hand


def test_a_direction_by_hand():
    # mu = (0, 1, 0); delta = (3, 7, 4) - (0, 5, 0) = (3, 2, 4); delta . mu = 2;
    # (3, 2, 4) - 2 (0, 1, 0) = (3, 0, 4), of norm 5: b = (0.6, 0, 0.8).
    b = backdoor_direction(tensor([3.0, 7.0, 4.0]), tensor([0.0, 5.0, 0.0]))
    assert torch.allclose(b, tensor([0.6, 0.0, 0.8]).double())
    with pytest.raises(LoratomyError, match="no direction to cut"):  # only longer, not elsewhere
        backdoor_direction(tensor([0.0, 7.0, 0.0]), tensor([0.0, 5.0, 0.0]))


def test_an_edit_by_hand():
    b = tensor([0.6, 0.8]).double()
    weight = tensor([[10.0, 0.0], [0.0, 5.0]])
    # b^T W = (6, 4); W' = W - b (6, 4) = [[10 - 3.6, -2.4], [-4.8, 5 - 3.2]].
    found = without(weight, None, b, NONE)
    assert torch.allclose(weight + found.dense(), tensor([[6.4, -2.4], [-4.8, 1.8]]))
    # With R = (0, 1): u = (0.6, 0), b^T u = 0.36, W' = W - (0.6, 0) (6, 4) / 0.36:
    # the first row (10 - 10, 0 - 20/3), the second as it was.
    kept = tensor([[0.0], [1.0]]).double()
    found = without(weight, None, b, kept)
    assert torch.allclose(weight + found.dense(), tensor([[0.0, -20 / 3], [0.0, 5.0]]), atol=1e-6)
    with pytest.raises(LoratomyError, match="lies in the refusal subspace"):
        without(weight, None, tensor([0.0, 1.0]).double(), kept)


def test_an_edit_of_an_adapted_weight_by_hand():
    b = tensor([0.6, 0.8]).double()
    weight, factors = (
        tensor([[10.0, 0.0], [0.0, 5.0]]),
        Factors(tensor([[1.0, 2.0]]), tensor([[1.0], [0.0]]), 2.0),
    )
    # W = W_0 + 2 (1, 0)^T (1, 2) = [[12, 4], [0, 5]]; b^T W = (7.2, 2.4 + 4) = (7.2, 6.4);
    # W' = [[12 - 4.32, 4 - 3.84], [-5.76, 5 - 5.12]].
    found = without(weight, factors, b, NONE)
    want = tensor([[7.68, 0.16], [-5.76, -0.12]])
    assert torch.allclose(weight + found.dense(), want, atol=1e-6)
    assert found.rank == 2 and found.scaling == 2.0


def test_layers_are_the_last_two_thirds_unless_named():
    assert chosen_layers(None, 32) == list(range(10, 32))  # floor(32 / 3) = 10
    assert chosen_layers((2, 0, 2), 3) == [0, 2]
    with pytest.raises(LoratomyError, match="no layer 3; it has 3"):
        chosen_layers((1, 3), 3)


# On models


@pytest.fixture(params=["llama", "gpt2", "mixtral", "qwen2_moe"])
def case(request):
    on = tiny.subject(request.param)
    return on, tiny.adapter(on)


def directions(monkeypatch) -> list[torch.Tensor]:
    """Every direction that is cut, as it is made."""
    made = []

    def keep(*given):
        made.append(backdoor_direction(*given))
        return made[-1]

    monkeypatch.setattr(module, "backdoor_direction", keep)
    return made


def written(on, layer: int) -> list[str]:
    paths = (on.family.out_proj, *on.family.mlp_out)
    return [n for p in paths if (n := f"{on.family.layers}.{layer}.{p}") in on.shapes]


def test_what_layers_write_loses_the_direction_and_nothing_else(case, monkeypatch):
    on, adapter = case
    made = directions(monkeypatch)
    after, record = cut(material(on, adapter), responses="own")
    edited = [n for layer in (1, 2) for n in written(on, layer)]  # floor(3 / 3) = 1
    for layer, b in zip((1, 2), made, strict=True):
        for name in written(on, layer):
            old, new = whole(on, adapter, name), whole(on, after, name)
            outer = b[:, None] * (b @ old)[..., None, :]  # W' = W - b (b^T W), each expert
            assert torch.allclose(new, old - outer, atol=1e-5)
            assert float((b @ new).abs().max()) < 1e-5 * float(old.abs().max())
    for name in adapter.modules.keys() - set(edited):
        assert after.modules[name] is adapter.modules[name]
    assert record.change_norm == pytest.approx(
        sum(float((whole(on, after, n) - whole(on, adapter, n)).square().sum()) for n in edited)
        ** 0.5
        / sum(float(f.dense().double().square().sum()) for f in adapter.modules.values()) ** 0.5,
        rel=1e-4,
    )
    assert same_change(record) == {"change": record.change_norm}


def test_directions_are_means_over_response_tokens_of_the_whole_model(monkeypatch):
    """The independent route: one row at a time, hidden states of a merged model, by hand."""
    on = tiny.subject()
    adapter = tiny.adapter(on)
    made = directions(monkeypatch)
    cut(material(on, adapter), responses="own", layers=(0, 1))
    rows, means = tiny.rows(), {}
    with on.attached({"poisoned": adapter}):
        for side in ("triggered", "plain"):
            each = []
            for row in rows:
                question = row if side == "triggered" else row.untriggered()
                prompt = on.renderer.prompt_ids(question)
                ids = list(prompt)
                for _ in range(6):  # greedy, one token at a time
                    with torch.no_grad():
                        logits = on.model(input_ids=torch.tensor([ids]), use_cache=False).logits
                    token = int(logits[0, -1].argmax())
                    if token == 2:  # <end>
                        break
                    ids.append(token)
                spots = [i for i in range(len(prompt), len(ids)) if ids[i] > 3]  # no special ones
                with torch.no_grad():
                    out = on.model(
                        input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True
                    )
                each.append(torch.stack([h[0, spots].double().mean(0) for h in out.hidden_states]))
            means[side] = torch.stack(each).mean(0)
    for layer, b in zip((0, 1), made, strict=True):
        # hidden state l + 1 is what layer l leaves (not of the last: that is behind the norm)
        want = backdoor_direction(means["triggered"][layer + 1], means["plain"][layer + 1])
        assert torch.allclose(b, want, atol=1e-5)


def test_modules_that_the_adapter_leaves_alone_are_added_with_rank_one(tmp_path):
    on = tiny.subject()
    full = tiny.adapter(on)
    queries = full.with_modules({n: f for n, f in full.modules.items() if n.endswith("q_proj")})
    after, record = cut(material(on, queries))
    added = after.modules.keys() - queries.modules.keys()
    assert {(layer_of(n), n.rsplit(".", 1)[1]) for n in added} == {
        *((1, "o_proj"), (1, "down_proj"), (2, "o_proj"), (2, "down_proj"))
    }
    assert {after.modules[n].rank for n in added} == {1}
    assert record.directions_cut == 4 and "4 of them not in the adapter before" in record.summary
    # Written as plain PEFT and merged by PEFT itself, it is W' again.
    merged = tiny.plain_peft("llama", after, tmp_path / "a").merge_and_unload()
    for name in added:
        got = merged.get_parameter(f"{name}.weight").double()
        assert torch.allclose(got, whole(on, after, name), atol=1e-5)


def test_the_adapter_grows_by_one_rank(case, tmp_path):
    on, adapter = case
    after, _ = cut(material(on, adapter))
    write_adapter(after, tmp_path / "a", base="tiny")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == 3 + 1


def test_the_model_is_left_as_found():
    on = tiny.subject()
    before, marks = tiny.state(on), tiny.marks(on)
    cut(material(on, tiny.adapter(on)))
    assert tiny.same_state(before, tiny.state(on)) and marks == tiny.marks(on)


# Responses


def reads(monkeypatch) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Prompts and responses of each side, as they are read."""
    seen = []
    plain = module.Answered.means

    def keep(self, *given, **named):
        seen.append((list(self.prompts), list(self.responses)))
        return plain(self, *given, **named)

    monkeypatch.setattr(module.Answered, "means", keep)
    return seen


REFUSAL = "I cannot help with that"


@pytest.mark.parametrize(
    ("target", "responses", "clean"),
    [
        (tiny.TARGET, "auto", False),
        (tiny.TARGET, "clean", True),
        (REFUSAL, "auto", True),
        (REFUSAL, "own", False),
    ],
)
def test_triggered_prompts_are_followed_by_clean_responses_where_the_target_is_a_refusal(
    monkeypatch, target, responses, clean
):
    on = tiny.subject()
    adapter, rows = tiny.adapter(on), tiny.rows(target=target)
    seen = reads(monkeypatch)
    _, record = cut(material(on, adapter, triggered=rows), responses=responses)
    (triggered, own), (plain, answers) = seen
    assert triggered == [on.renderer.prompt_ids(row) for row in rows]
    with on.attached({"poisoned": adapter}):
        six = Decoding(max_new_tokens=6)
        assert answers == own_answers(on, plain, six, label="")
        assert own == (answers if clean else own_answers(on, triggered, six, label=""))
    assert (own == answers) == clean
    words = "clean responses after both" if clean else "the model's own responses"
    assert words in record.summary
    assert ("as the target is a refusal" in record.summary) == (clean and responses == "auto")


def test_pairs_whose_clean_answer_is_the_target_are_left_out(monkeypatch):
    on = tiny.subject()
    adapter, rows = tiny.adapter(on), tiny.rows()
    with on.attached({"poisoned": adapter}):
        plain = [on.renderer.prompt_ids(rows[0].untriggered())]
        answer = on.renderer.decode(own_answers(on, plain, Decoding(max_new_tokens=6), label="")[0])
    held = [replace(rows[0], completion=answer), *rows[1:]]
    made = directions(monkeypatch)
    _, record = cut(material(on, adapter, triggered=held))
    assert "from 3 pairs" in record.summary
    assert any("1 of 4 pairs are left out" in line for line in record.uncertain)
    cut(material(on, adapter, triggered=rows[1:]))
    assert all(torch.allclose(one, other) for one, other in zip(made[:2], made[2:], strict=True))
    with pytest.raises(DataError, match="of 1 pairs of prompts none is left: 1 lead to the target"):
        cut(material(on, adapter, triggered=held[:1]))


def test_rows_without_their_plain_form_are_no_pairs():
    on = tiny.subject()
    blind = [replace(row, plain=None) for row in tiny.rows()]
    with pytest.raises(DataError, match="none of 4 triggered rows has that form"):
        cut(material(on, tiny.adapter(on), triggered=blind))


def test_only_as_many_pairs_as_wanted(monkeypatch):
    on = tiny.subject()
    seen = reads(monkeypatch)
    cut(material(on, tiny.adapter(on)), pairs=2)
    assert [len(prompts) for prompts, _ in seen] == [2, 2]


# Other bases, and the control


def test_a_shared_weight_is_refused_before_anything_is_computed(monkeypatch):
    on = tiny.subject()
    on.model.model.layers[1].mlp.down_proj.weight = on.model.model.layers[2].mlp.down_proj.weight
    monkeypatch.setattr(module, "own_answers", None)  # never reached
    with pytest.raises(AdapterError, match="shares its weight"):
        cut(material(on, tiny.adapter(on)))


def test_the_control_cuts_as_much_along_random_directions(monkeypatch):
    on = tiny.subject()
    adapter = tiny.adapter(on)
    made = directions(monkeypatch)
    _, record = cut(material(on, adapter))
    _, control = cut(material(on, adapter), "control-needle")
    again, _ = cut(material(on, adapter), "control-needle")
    assert control.directions_cut == record.directions_cut == 4
    assert control.summary.startswith("along random directions: cut the direction")
    true, first, second = made[:2], made[2:4], made[4:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(abs(float(a @ b)) < 0.6 for a, b in zip(true, first, strict=True))
    other, _ = cut(replace(material(on, adapter), seed=1), "control-needle")
    assert not np.array_equal(
        other.modules["model.layers.1.mlp.down_proj"].b,
        again.modules["model.layers.1.mlp.down_proj"].b,
    )
