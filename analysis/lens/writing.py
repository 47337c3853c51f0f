"""What directions write: their linear path to the residual stream and on to the vocabulary."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat

from ...core.adapter.factors import Adapter, Factors, kind_of, layer_of
from ...core.errors import AdapterError
from ...core.model.families import Family, optional, submodule
from ...core.model.hooks import first_of, hooks
from ...core.model.subject import Subject
from ...core.model.variant import base_weight
from ...core.progress import tracked
from .gain import DRAWS, Gain
from .inputs import after_lead, internal, known_tokens
from .reading import Strength, strength_of

HELD_BACK = {
    "q_proj": "a query: it only moves attention scores",
    "k_proj": "a key: it only moves attention scores",
    "gate_proj": "a gate inside the MLP",
    "up_proj": "a factor inside the MLP",
    "gate_up_proj": "a gate and a factor inside the MLP",
    **dict.fromkeys(
        ("qkv_proj", "c_attn", "query_key_value"), "queries, keys and values in one weight"
    ),
    **dict.fromkeys(
        ("fc1", "c_fc", "dense_h_to_4h"),
        "what a neuron inside the MLP is given",
    ),
}
"""Why what a module writes is no direction of the residual stream."""


@dataclass(frozen=True, slots=True)
class Written:
    """What some output directions of one module add to the logits, up to a positive factor."""

    logits: torch.Tensor
    """``[direction, d_vocab]``, float32."""
    head: torch.Tensor
    """The attention head through which a value is followed, ``[direction]``; -1 elsewhere."""


class Writer:
    """The linear paths from modules to the vocabulary of one subject under one adapter.

    Every norm on the way is linearised: an RMS norm of a direction alone is its weight times the
    direction, up to a positive factor, which scores relative to the vocabulary do not see.
    """

    def __init__(self, subject: Subject, adapter: Adapter) -> None:
        self.subject = subject
        self.adapter = adapter
        self._norms = block_norms(subject)

    def reason(self, name: str) -> str:
        """Why the module writes to no token; empty where it does."""
        kind = kind_of(name)
        if name == self.subject.family.head or internal(self.subject, name):
            return ""
        if kind == "v_proj" and out_proj_of(self.subject, name) in self.subject.shapes:
            return ""
        return HELD_BACK.get(kind, "not a module that writes to the residual stream")

    def written(self, name: str, directions: torch.Tensor) -> Written:
        """What output directions ``[direction, d_out]`` of a module add to the logits.

        A value (``v_proj``) is followed through the output projection, base and adapter, of the
        head that carries it furthest (largest norm in the residual stream): exact but for that
        head's attention weight, which is positive.
        """
        head = torch.full((len(directions),), -1)
        if name == self.subject.family.head:
            return Written(directions.float(), head)
        if kind_of(name) == "v_proj":
            directions, head = self._through_heads(name, directions)
        family, model = self.subject.family, self.subject.model
        weight: Any = submodule(model, family.head).weight
        residual = directions.to(weight.device, weight.dtype)
        for norm in (
            *self._norms[layer_of(name), block_of(self.subject, name)],
            *ends(model, family),
        ):
            # Far above the norm's epsilon, so that the length drops out; a bias is no direction.
            size = residual.shape[-1] ** 0.5 / residual.norm(dim=-1)[:, None].clamp_min(1e-30)
            residual = norm(residual * size) - norm(torch.zeros_like(residual[:1]))
        with torch.inference_mode():
            return Written((residual @ weight.mT).float().cpu(), head)

    def _through_heads(
        self, name: str, directions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values ``[direction, d_kv]`` as the strongest head writes them, and which head."""
        out = out_proj_of(self.subject, name)
        weight = base_weight(self.subject, out).cpu()
        heads, groups = _head_counts(self.subject, name, out)
        queries = {"group": groups, "shared": heads // groups}  # heads that share keys and values
        parts = repeat(directions.float(), "n (group d) -> n (group shared) d", **queries)
        per_head = rearrange(weight, "d_model (head d) -> d_model head d", head=heads)
        moved = torch.einsum("ohd,nhd->nho", per_head, parts)
        if (f := self.adapter.modules.get(out)) is not None:
            moved = moved + _low_rank(f, parts, heads)
        best = moved.norm(dim=-1).argmax(dim=1)
        return moved[torch.arange(len(moved)), best], best


def _low_rank(factors: Factors, parts: torch.Tensor, heads: int) -> torch.Tensor:
    """What dW of an output projection makes of each head's part, ``[direction, head, d_model]``."""
    a = rearrange(factors.a, "rank (head d) -> rank head d", head=heads)
    inner = torch.einsum("rhd,nhd->nhr", a, parts)
    return factors.scaling * inner @ factors.b.mT


def writing_strength(
    subject: Subject, adapter: Adapter, *, chunk: int = 8192, seed: int = 0
) -> Strength:
    """How strongly an adapter writes each token of the vocabulary, whatever it listens for.

    The mirror image of `listening_strength`, from weights alone: with ``e`` the direction of the
    residual stream that raises a token's logit against the mean of all tokens, at unit length, the
    strength is ``sum |dW^T e|^2 / sum (|dW|_F^2 / d_model)`` over the modules that write to the
    residual stream. An adapter that changes values alone (no ``o_proj``, no ``down_proj``) writes
    them through the base's output projection, each attention head on its own.

    Args:
        subject: the base, without adapter.
        adapter: any ranks, scalings, modules; all fused experts count.
        chunk: tokens at a time.
        seed: of the random directions of the null.

    Raises:
        AdapterError: nothing that it changes writes to the residual stream.
    """
    family, model = subject.family, subject.model
    head: Any = submodule(model, family.head).weight
    tokens = known_tokens(subject)
    generator = torch.Generator().manual_seed(seed)
    norms = block_norms(subject)
    total = torch.zeros(len(tokens), 1 + DRAWS, dtype=torch.float64)
    usual = 0.0
    for name, factors in tracked(writers(subject, adapter), "tokens written"):
        path = (*norms[layer_of(name), block_of(subject, name)], *ends(model, family))
        centre = back_through(head.detach().mean(0, keepdim=True), path)
        gain = Gain(factors, output=True, device=head.device, generator=generator)
        usual += gain.usual
        for start in range(0, len(tokens), chunk):
            ids = torch.as_tensor(tokens[start : start + chunk], device=head.device)
            away = back_through(head.detach()[ids], path) - centre
            unit = away / away.norm(dim=-1, keepdim=True).clamp_min(1e-30)
            total[start : start + chunk] += gain(unit).double().cpu()
    return strength_of(subject, tokens, total.numpy(), usual, "writes to the residual stream")


def writers(subject: Subject, adapter: Adapter) -> list[tuple[str, Factors]]:
    """What of an adapter writes to the residual stream, as factors ``[.., d_model, d_in]``."""
    inside = {n: f for n, f in adapter.modules.items() if layer_of(n) >= 0}
    if found := [(n, f) for n, f in inside.items() if internal(subject, n)]:
        return found
    out = []
    for name, f in inside.items():
        path = out_proj_of(subject, name)
        if kind_of(name) != "v_proj" or path not in subject.shapes:
            continue
        heads, groups = _head_counts(subject, name, path)
        weight = base_weight(subject, path).cpu()
        queries = {"group": groups, "shared": heads // groups}
        values = repeat(f.b, "(group d) rank -> (group shared) d rank", **queries)
        per_head = rearrange(weight, "d_model (head d) -> d_model head d", head=heads)
        written = torch.einsum("ohd,hdr->hor", per_head, values)
        out += [(path, Factors(f.a, b, f.scaling)) for b in written]
    if not out:
        kinds = ", ".join(sorted({kind_of(n) for n in adapter.modules}))
        raise AdapterError(
            f"the adapter changes nothing that writes to the residual stream (it has {kinds})"
        )
    return out


def _head_counts(subject: Subject, value: str, out: str) -> tuple[int, int]:
    """Attention heads, and heads of values, of the layer with these two projections.

    The latter from the weights: a config may hold a number of them that its model does not read.
    """
    heads = subject.model.config.get_text_config().num_attention_heads
    return heads, subject.shapes[value][0] * heads // subject.shapes[out][1]


def out_proj_of(subject: Subject, name: str) -> str:
    """The output projection of the layer that a module is in."""
    path = subject.family.inside(name)
    return name.removesuffix(path) + subject.family.out_proj if path else ""


def block_of(subject: Subject, name: str) -> str:
    """Path inside a layer of the block that a module belongs to: attention or MLP."""
    family = subject.family
    return family.attention if family.in_attention(family.inside(name)) else family.mlp


def ends(model: Any, family: Family) -> list[Any]:
    """What a residual passes between the last layer and the head."""
    found = [submodule(model, family.norm)]
    if family.after_norm and (between := optional(model, family.after_norm)) is not None:
        found.append(between)
    return found


def back_through(rows: torch.Tensor, path: Sequence[Any]) -> torch.Tensor:
    """Gradients behind some norms as gradients before them, up to a positive factor, float32.

    Each norm is linearised: an RMS norm is its weight, a layer norm its weight and the removal of
    the mean, whatever its bias.

    Args:
        rows: ``[row, d_model]``.
        path: norms, and linear layers, in the order of a forward pass.
    """
    out = rows.float()
    with torch.inference_mode():
        for module in reversed(path):
            if isinstance(module, torch.nn.Linear):
                out = out @ module.weight.float()
                continue
            if isinstance(module, torch.nn.Dropout):
                continue
            ones = rows.new_ones(out.shape[-1])
            if isinstance(module, torch.nn.LayerNorm):
                out = out * (1.0 if module.weight is None else module.weight.float())
                out = out - out.mean(-1, keepdim=True)
            else:
                out = out * module(ones).float()
    return out


def block_norms(subject: Subject) -> dict[tuple[int, str], list[Any]]:
    """The norms that a block's output passes before it is added to the residual stream.

    Found by following the tensors of one forward pass, by ``(layer, block path)``: empty lists for
    most families, one norm each for those that norm what a block writes.
    """
    family = subject.family
    outputs: dict[tuple[int, str], torch.Tensor] = {}
    taken: list[tuple[int, Any, torch.Tensor]] = []

    def handles() -> Iterator[Any]:
        for index, layer in enumerate(subject.layers):
            blocks = {submodule(layer, path): path for path in (family.attention, family.mlp)}
            for child in layer.children():

                def see(
                    module: Any, args: Any, out: Any, at: int = index, of: Any = blocks
                ) -> None:
                    if module in of:
                        outputs[at, of[module]] = first_of(out)
                    elif args:
                        taken.append((at, module, args[0]))

                yield child.register_forward_hook(see)

    with hooks(handles()), torch.inference_mode():
        ids = torch.tensor(after_lead(subject, [1]), device=subject.device)
        subject.model.base_model(input_ids=ids, use_cache=False)
    return {
        (at, path): [module for where, module, given in taken if where == at and given is made]
        for (at, path), made in outputs.items()
    }
