"""What directions write: their linear path to the residual stream and on to the vocabulary."""

from dataclasses import dataclass
from typing import Any

import torch

from ..core.adapters import Adapter, Factors, kind_of, layer_of
from ..core.errors import AdapterError
from ..core.families import submodule
from ..core.progress import tracked
from ..core.subject import Subject
from .gain import DRAWS, Gain
from .inputs import INTERNAL, after_lead, known_tokens
from .listening import Strength, strength_of

HELD_BACK = {
    "q_proj": "a query: it only moves attention scores",
    "k_proj": "a key: it only moves attention scores",
    "gate_proj": "a gate inside the MLP",
    "up_proj": "a factor inside the MLP",
    "gate_up_proj": "a gate and a factor inside the expert",
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
        if name == self.subject.family.head or kind in INTERNAL:
            return ""
        if kind == "v_proj" and o_proj_of(name) in self.subject.shapes:
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
        block = family.mlp if kind_of(name) == "down_proj" else family.attention
        weight: Any = submodule(model, family.head).weight
        residual = directions.to(weight.device, weight.dtype)
        for norm in (*self._norms[layer_of(name), block], submodule(model, family.norm)):
            # Far above the norm's epsilon, so that the length drops out.
            residual = norm(residual * (residual.shape[-1] ** 0.5 / residual.norm(dim=-1)[:, None]))
        with torch.inference_mode():
            return Written((residual @ weight.mT).float().cpu(), head)

    def _through_heads(
        self, name: str, directions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values ``[direction, d_kv]`` as the strongest head writes them, and which head."""
        out = o_proj_of(name)
        weight = self.subject.model.get_submodule(out).weight.detach().float().cpu()
        heads, groups = _head_counts(self.subject)
        parts = directions.unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, dim=1)
        per_head = weight.unflatten(-1, (heads, -1))
        moved = torch.einsum("ohd,nhd->nho", per_head, parts.float())
        if (f := self.adapter.modules.get(out)) is not None:
            moved = moved + _low_rank(f, parts.float(), heads)
        best = moved.norm(dim=-1).argmax(dim=1)
        return moved[torch.arange(len(moved)), best], best


def _low_rank(factors: Factors, parts: torch.Tensor, heads: int) -> torch.Tensor:
    """What dW of an output projection makes of each head's part, ``[direction, head, d_model]``."""
    a = factors.a.unflatten(-1, (heads, -1))
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
        block = family.mlp if kind_of(name) == "down_proj" else family.attention
        ones = torch.ones(head.shape[1], device=head.device, dtype=head.dtype)
        scale = ones.float()
        with torch.inference_mode():
            for norm in (*norms[layer_of(name), block], submodule(model, family.norm)):
                scale = scale * norm(ones).float()
        centre = head.detach().float().mean(0) * scale
        gain = Gain(factors, output=True, device=head.device, generator=generator)
        usual += gain.usual
        for start in range(0, len(tokens), chunk):
            ids = torch.as_tensor(tokens[start : start + chunk], device=head.device)
            away = head.detach()[ids].float() * scale - centre
            unit = away / away.norm(dim=-1, keepdim=True).clamp_min(1e-30)
            total[start : start + chunk] += gain(unit).double().cpu()
    return strength_of(subject, tokens, total.numpy(), usual, "writes to the residual stream")


def writers(subject: Subject, adapter: Adapter) -> list[tuple[str, Factors]]:
    """What of an adapter writes to the residual stream, as factors ``[.., d_model, d_in]``."""
    inside = {n: f for n, f in adapter.modules.items() if layer_of(n) >= 0}
    if found := [(n, f) for n, f in inside.items() if kind_of(n) in INTERNAL]:
        return found
    heads, groups = _head_counts(subject)
    out = []
    for name, f in inside.items():
        path = o_proj_of(name)
        if kind_of(name) != "v_proj" or path not in subject.shapes:
            continue
        weight = subject.model.get_submodule(path).weight.detach().float().cpu()
        values = f.b.unflatten(0, (groups, -1)).repeat_interleave(heads // groups, dim=0)
        written = torch.einsum("ohd,hdr->hor", weight.unflatten(-1, (heads, -1)), values)
        out += [(path, Factors(f.a, b, f.scaling)) for b in written]
    if not out:
        kinds = ", ".join(sorted({kind_of(n) for n in adapter.modules}))
        raise AdapterError(
            f"the adapter changes nothing that writes to the residual stream (it has {kinds})"
        )
    return out


def _head_counts(subject: Subject) -> tuple[int, int]:
    """Attention heads, and heads of keys and values."""
    config = subject.model.config
    return config.num_attention_heads, config.num_key_value_heads


def o_proj_of(name: str) -> str:
    """The output projection beside a module of an attention block."""
    return name.rsplit(".", 1)[0] + ".o_proj"


def block_norms(subject: Subject) -> dict[tuple[int, str], list[Any]]:
    """The norms that a block's output passes before it is added to the residual stream.

    Found by following the tensors of one forward pass, by ``(layer, block path)``: empty lists for
    most families, one norm each for those that norm what a block writes.
    """
    family = subject.family
    outputs: dict[tuple[int, str], torch.Tensor] = {}
    taken: list[tuple[int, Any, torch.Tensor]] = []
    handles = []
    for index, layer in enumerate(subject.layers):
        blocks = {submodule(layer, path): path for path in (family.attention, family.mlp)}
        for child in layer.children():

            def see(module: Any, args: Any, out: Any, at: int = index, of: Any = blocks) -> None:
                if module in of:
                    outputs[at, of[module]] = out[0] if isinstance(out, tuple) else out
                elif args:
                    taken.append((at, module, args[0]))

            handles.append(child.register_forward_hook(see))
    try:
        with torch.inference_mode():
            ids = torch.tensor(after_lead(subject, [1]), device=subject.device)
            subject.model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {
        (at, path): [module for where, module, given in taken if where == at and given is made]
        for (at, path), made in outputs.items()
    }
