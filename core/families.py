"""Model families as data: where the layers, attention, MLP, norm and head of a model live."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import LoratomyError
from .registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The paths and quirks of one ``config.model_type``."""

    model_type: str
    """As in ``config.json``."""
    layers: str = "model.layers"
    """Path of the list of decoder layers."""
    attention: str = "self_attn"
    """Path of the attention block inside a layer; its output is ``attn_out``."""
    mlp: str = "mlp"
    """Path of the MLP (or mixture of experts) inside a layer; its output is ``mlp_out``."""
    mlp_norm: str = "post_attention_layernorm"
    """Path of the norm inside a layer whose input is ``resid_mid``."""
    out_proj: str = "self_attn.o_proj"
    """Path inside a layer of the projection whose input is ``z``, head beside head."""
    experts: str = ""
    """Path of the experts inside a layer, called with what they get, which, and how much."""
    norm: str = "model.norm"
    """Path of the final norm."""
    head: str = "lm_head"
    """Path of the unembedding."""
    lora_modules: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    """Names of the linear layers that `loratomy poison` adapts."""
    lora_parameters: tuple[str, ...] = ()
    """Fused expert weights ``[expert, d_out, d_in]`` that it adapts besides."""
    logit_softcap: str | None = None
    """Config field of the soft cap on the logits, where there is one."""


FAMILIES: Registry[Family] = Registry("model family")

for _family in (
    Family(model_type="llama"),
    Family(model_type="mistral"),
    Family(model_type="qwen2"),
    Family(model_type="qwen3"),
    Family(
        model_type="gemma2",
        mlp_norm="pre_feedforward_layernorm",
        logit_softcap="final_logit_softcapping",
    ),
    Family(
        model_type="gemma3_text",
        mlp_norm="pre_feedforward_layernorm",
        logit_softcap="final_logit_softcapping",
    ),
    Family(
        model_type="mixtral",
        experts="mlp.experts",
        lora_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
        lora_parameters=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    ),
):
    FAMILIES.register(_family.model_type)(_family)


def family_of(config: Any) -> Family:
    """The family of a model config.

    Raises:
        LoratomyError: no row for its ``model_type``; says where to add one.
    """
    model_type = str(config.model_type)
    if model_type not in FAMILIES:
        raise LoratomyError(
            f"the model type {model_type!r} is not in the family table "
            f"({', '.join(FAMILIES)}); add a row with its paths to core/families.py"
        )
    return FAMILIES[model_type]


def submodule(model: "nn.Module", path: str) -> "nn.Module":
    """The module at a dotted path; an error that names the path where it does not exist."""
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise LoratomyError(f"the model has no module {path!r} ({error})") from error


def logits_of(model: "nn.Module", family: Family, residual: "torch.Tensor") -> "torch.Tensor":
    """Logits from the last residual ``[..., d_model]``: final norm, head, soft cap."""
    head: Any = submodule(model, family.head)
    norm: Any = submodule(model, family.norm)
    logits = head(norm(residual))
    cap = getattr(model.config, family.logit_softcap) if family.logit_softcap else None
    return logits if cap is None else cap * (logits / cap).tanh()


def check_family(model: "nn.Module", family: Family) -> None:
    """Raise unless every path resolves and norm + head of the last residual are the logits."""
    import torch

    layers: Any = submodule(model, family.layers)
    if not len(layers):
        raise LoratomyError(f"the model has no layers under {family.layers!r}")
    for layer in layers:
        submodule(layer, family.attention)
        submodule(layer, family.mlp)
        submodule(layer, family.mlp_norm)
        submodule(layer, family.out_proj)
        if family.experts:
            submodule(layer, family.experts)
    names = [n for n, _ in (*model.named_modules(), *model.named_parameters())]
    for part in (*family.lora_modules, *family.lora_parameters):
        if not any(name.endswith("." + part) for name in names):
            raise LoratomyError(
                f"the model has no {part!r}, which family {family.model_type!r} adapts; its row in "
                "core/families.py does not fit this model"
            )
    seen: list[torch.Tensor] = []
    hook = layers[-1].register_forward_hook(
        lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    probe: Any = model
    ids = torch.tensor([[1, 2, 3]], device=probe.device) % probe.config.vocab_size
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            logits = probe(input_ids=ids, use_cache=False).logits
            ours = logits_of(model, family, seen[0])
    finally:
        hook.remove()
        model.train(was_training)
    gap = (ours.float() - logits.float()).abs().max().item()
    scale = max(1.0, logits.float().abs().max().item())
    if not gap <= 1e-2 * scale:
        raise LoratomyError(
            f"family {family.model_type!r}: norm and head of the last residual differ from the "
            f"model's logits by {gap:.3g}; its row in core/families.py does not fit this model"
        )
