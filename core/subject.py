"""The subject under study: a base model held once, onto which adapters are put and taken off."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .adapters import Adapter, Factors, Shapes, factor_keys, filled, pack, uniform, unpack
from .base_check import check_base
from .base_tokenizer import check_vocabulary, load_error, load_tokenizer
from .errors import LoratomyError
from .families import Family, check_family, family_of, linear_shape, stored_turned, text_tower
from .paths import check_utf8
from .pickles import pickled_model
from .prompts import Renderer, position_limit
from .rendering import Rendering
from .targets import HEADS, is_embedding

if TYPE_CHECKING:
    from peft import PeftModel

_REMOTE_CODE = "the base {} names code of its own (auto_map), which is never run; take another base"


def weight_shapes(model: nn.Module) -> Shapes:
    """Every weight that LoRA can adapt: linear ``[out, in]``, fused experts ``[e, out, in]``.

    Linear layers go by their module's name, fused experts by their parameter's. Of a model with a
    tower for images those of the text tower and the head count.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if (shape := linear_shape(module)) is not None:
            shapes[name] = shape
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3:
            shapes[name] = tuple(parameter.shape)
    text = text_tower(model)
    return {n: s for n, s in shapes.items() if not text or n.startswith(f"{text}.") or n in HEADS}


def embedding_shapes(model: Any) -> Shapes:
    """The token embedding as a linear layer from one-hot tokens: name -> ``[d_model, d_vocab]``."""
    embedding = model.get_input_embeddings()
    return {
        name: (module.embedding_dim, module.num_embeddings)
        for name, module in model.named_modules()
        if module is embedding and isinstance(module, nn.Embedding) and is_embedding(name)
    }


@dataclass(frozen=True)
class Subject:
    """A base model with its tokenizer, prompt rendering and family."""

    model: Any
    """The `PreTrainedModel`, in eval mode; adapters come and go, its own weights never change."""
    renderer: Renderer
    """How prompts become tokens."""
    family: Family
    """Where things are in it."""
    source: str
    """What the user gave: a folder, a hub id, or ``wren``."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """Number format of the weights, e.g. ``float32`` or ``nf4 (compute bfloat16)``."""
        plain = str(self.model.dtype).removeprefix("torch.")
        return _quantised(self.model.config, plain) or plain

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order."""
        return list(self.model.get_submodule(self.family.layers))

    @property
    def limit(self) -> int | None:
        """Longest sequence in tokens, where the config names one."""
        return position_limit(self.model.config)

    @property
    def shapes(self) -> Shapes:
        """Shapes of the weights that an adapter may change, the token embedding among them."""
        return {**embedding_shapes(self.model), **weight_shapes(self.model)}

    def parameter(self, name: str) -> torch.Tensor | None:
        """The base's own parameter of a name as stored; None where it has none."""
        try:
            return self.model.get_parameter(name).detach()
        except AttributeError:
            return None

    def _fill(self, values: Mapping[str, torch.Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for key, value in values.items():
                parameters[key].copy_(value)

    @contextmanager
    def attached(
        self, adapters: Mapping[str, Adapter], *, trainable: bool = False, dropout: float = 0.0
    ) -> "Iterator[Attached]":
        """Put adapters on the model under their names; the first is active; take them off after.

        Args:
            adapters: name -> adapter, at least one.
            trainable: let the first adapter's factors require gradients.
            dropout: of the adapters' inputs in train mode; 0 for fused experts.
        """
        modules = [(m, m.training, dict(m._modules)) for m in self.model.modules()]
        grads = [(p, p.requires_grad) for p in self.model.parameters()]
        if not adapters:
            raise ValueError("attached() needs at least one adapter")
        peft_model: Any = None
        try:
            for name, adapter in adapters.items():
                peft_model = _inject(peft_model or self.model, name, adapter, dropout)
                self._fill(packed(adapter, name))
            first = next(iter(adapters))
            peft_model.set_adapter(first)
            own = set(packed(adapters[first], first))
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(trainable and name in own)
            self.model.eval()
            yield Attached(self, peft_model, dict(adapters))
        finally:
            # PEFT cannot take off what it was interrupted in putting on.
            for module, training, children in modules:
                module._modules.clear()
                module._modules.update(children)
                module.training = training
            if hasattr(self.model, "peft_config"):
                del self.model.peft_config
            for parameter, asked in grads:
                parameter.requires_grad_(asked)
                parameter.grad = None


def _inject(model: Any, name: str, adapter: Adapter, dropout: float) -> "PeftModel":
    """A `PeftModel` with one adapter more, its factors still PEFT's own start."""
    from peft import LoraConfig, PeftModel

    rank, scaling, modules = uniform(adapter)
    linear = [n for n, f in modules.items() if not f.fused]
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    turned = [stored_turned(inner.get_submodule(n)) and not is_embedding(n) for n in linear]
    config = LoraConfig(
        r=rank,
        lora_alpha=scaling * rank,  # pyright: ignore[reportArgumentType]
        target_modules=linear,
        target_parameters=[n for n, f in modules.items() if f.fused] or None,
        lora_dropout=dropout,
        init_lora_weights=True,
        fan_in_fan_out=any(turned),
    )
    with warnings.catch_warnings():  # of Conv1D beside a linear head, and of factors on a tied one
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set|Model has `tie_word_emb")
        if not isinstance(model, PeftModel):
            return PeftModel(model, config, adapter_name=name)
        model.add_adapter(name, config)
    return model


def packed(adapter: Adapter, name: str) -> dict[str, torch.Tensor]:
    """Parameter name -> value of an adapter attached as `name`, in PEFT's storage."""
    _, _, modules = uniform(adapter)
    keys = factor_keys(adapter, name)
    return {
        key: value
        for module, factors in modules.items()
        for key, value in zip(keys[module], pack(factors), strict=True)
    }


@dataclass(frozen=True)
class Attached:
    """Adapters on a subject, for as long as the context lasts."""

    subject: Subject
    """The subject they are on."""
    peft_model: Any
    """The `PeftModel` around the subject's model, for what wants one (Trainer, nnsight)."""
    adapters: dict[str, Adapter]
    """What was attached."""

    def using(self, name: str | None) -> Any:
        """A context in which the named adapter, or none, is active."""
        if name is not None and name not in self.adapters:
            raise LoratomyError(
                f"adapter {name!r} is not attached; there are {list(self.adapters)}"
            )
        return _switched(self.peft_model, name)

    def factor_names(self, name: str) -> dict[str, tuple[str, str]]:
        """Module name -> names of its A and B parameters in the subject's model."""
        return factor_keys(self.adapters[name], name)

    def refill(self, name: str, adapter: Adapter) -> None:
        """Put other factors into an attached adapter: the same modules and scaling, no higher rank.

        Raises:
            LoratomyError: they differ in these.
        """
        rank, scaling, held = uniform(self.adapters[name])
        found, new_scaling, modules = uniform(adapter)
        if found > rank or scaling != new_scaling or held.keys() != modules.keys():
            raise LoratomyError(f"the factors put into {name!r} are of another shape")
        keys = factor_keys(adapter, name)
        self.subject._fill(
            {
                key: value
                for n, f in modules.items()
                for key, value in zip(keys[n], pack(filled(f, rank)), strict=True)
            }
        )

    def read_back(self, name: str) -> Adapter:
        """The adapter as it stands on the model now, e.g. after training."""
        adapter = self.adapters[name]
        rank, scaling, _ = uniform(adapter)
        parameters = dict(self.subject.model.named_parameters())
        modules = {}
        for module, (a_name, b_name) in self.factor_names(name).items():
            a, b = (parameters[n].detach().float().cpu().clone() for n in (a_name, b_name))
            a, b = unpack(a, b, rank, fused=adapter.modules[module].fused)
            modules[module] = Factors(a, b, scaling)
        return adapter.with_modules(modules)


@contextmanager
def _switched(peft_model: Any, name: str | None) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    before = peft_model.active_adapter
    layer = next(m for m in peft_model.modules() if isinstance(m, BaseTunerLayer))
    off = layer.disable_adapters
    if off if name is None else (name == before and not off):
        yield  # as it is: a switch walks the whole model several times
        return
    grads = [(p, p.requires_grad) for p in peft_model.parameters()]
    tuner = peft_model.base_model
    try:
        if name is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            peft_model.set_adapter(name)
        yield
    finally:
        peft_model.set_adapter(before)
        tuner.disable_adapter_layers() if off else tuner.enable_adapter_layers()
        for parameter, asked in grads:
            parameter.requires_grad_(asked)


def load_subject(
    source: str,
    *,
    rendering: Rendering | None = None,
    device: str = "auto",
    dtype: str = "auto",
    path: Path | None = None,
    otherwise: Rendering | None = None,
) -> Subject:
    """The base model from a folder or hub id, checked against its family.

    Args:
        source: what the user gave; kept as the subject's name.
        rendering: how prompts are rendered; None for the tokenizer's own chat template (an error
            when it has none).
        device: ``auto`` takes a GPU when there is one.
        dtype: ``auto`` is float32 on the CPU and bfloat16 on a GPU.
        path: where the files are, when that differs from the name (the built-in model).
        otherwise: the rendering to take when none is given and the tokenizer has no chat template.

    Raises:
        LoratomyError: missing or empty folder, remote code, pickled weights, unknown family, no
            chat template, hub out of reach.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.peft_utils import find_adapter_config_file

    where = str(path or source)
    local = Path(where).is_dir()
    if not local and (path or where.startswith((".", "/", "~")) or where.count("/") != 1):
        raise LoratomyError(f"the base {where!r} is neither a folder nor a hub id (owner/name)")
    if local and not (Path(where) / "config.json").exists():
        raise LoratomyError(f"the base folder {where} holds no config.json")
    if local and (said := pickled_model(Path(where))):
        raise LoratomyError(f"the base {said}")
    if local:
        check_utf8(Path(where), "base")
        check_base(Path(where))
    place = _place(device)
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise LoratomyError(f"unknown dtype {dtype!r}; use float32, bfloat16 or float16")
    common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(where, **common)
        if find_adapter_config_file(where, local_files_only=local):  # transformers would put it on
            raise LoratomyError(f"the base {where} holds an adapter; give the base alone")
        if getattr(config, "auto_map", None):
            raise LoratomyError(_REMOTE_CODE.format(where))
        family, number = family_of(config), _number(config, dtype, place)
        tokenizer = load_tokenizer(where, **common)
        common |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        both: Any = AutoModelForCausalLM.from_pretrained(
            where, dtype=number, use_safetensors=True, **common
        )
        loaded, told = both
        _check_whole(told, where)
    except LoratomyError:
        raise
    except Exception as error:  # the loaders raise every kind; one line for the user
        raise LoratomyError(_load_advice(where, local, error)) from error
    check_vocabulary(tokenizer, loaded.get_input_embeddings().weight.shape[0], where)
    model = loaded.to(place).eval().requires_grad_(False)
    _quiet_generation(model)
    if rendering is None:
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        rendering = Rendering() if has_chat or otherwise is None else otherwise
    renderer = Renderer(tokenizer, rendering)
    check_family(model, family)
    return Subject(model, renderer, family, source)


def _check_whole(told: Mapping[str, Any], where: str) -> None:
    """Raise where a tensor was not read, which transformers fills with random numbers."""
    if missing := sorted(told["missing_keys"]):
        raise LoratomyError(
            f"the base {where} is incomplete: no tensor {missing[0]} ({len(missing)} missing)"
        )
    if wrong := sorted(told["mismatched_keys"]):
        name, stored, wanted = wrong[0]
        raise LoratomyError(
            f"the base {where}: {name} has the shape {tuple(stored)} in the weights and "
            f"{tuple(wanted)} by config.json ({len(wrong)} such); take the config that belongs to "
            "these weights"
        )


def _place(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise LoratomyError(f"no device {device!r} here; use auto, cpu or cuda") from error


def _quantisation(config: Any) -> dict[str, Any]:
    """How the weights are quantised, as in config.json; empty where they are not."""
    found = getattr(config, "quantization_config", None) or {}
    return dict(found if isinstance(found, Mapping) else found.to_dict())


def _quantised(config: Any, plain: str) -> str:
    """The number format of quantised weights; empty where they are not quantised."""
    found = _quantisation(config)
    if not found:
        return ""
    name = str(found.get("quant_method", "quantised"))
    if found.get("load_in_4bit"):
        name = str(found.get("bnb_4bit_quant_type", "4 bit"))
    elif found.get("load_in_8bit"):
        name = "int8"
    compute = str(found.get("bnb_4bit_compute_dtype") or plain).removeprefix("torch.")
    return f"{name} (compute {compute})"


def _number(config: Any, dtype: str, place: torch.device) -> torch.dtype:
    """The number format to load in; for a 4-bit base the one that it computes in."""
    found = _quantisation(config)
    compute = found.get("bnb_4bit_compute_dtype") if found.get("load_in_4bit") else None
    if compute:
        compute = str(compute).removeprefix("torch.")
        if dtype not in ("auto", compute):
            raise LoratomyError(
                f"the base is quantised, {_quantised(config, dtype)}: its weights stay so under "
                f"--dtype {dtype}; leave --dtype out, or give the base that is not quantised"
            )
        return getattr(torch, compute)
    auto = "bfloat16" if place.type == "cuda" else "float32"
    return getattr(torch, auto if dtype == "auto" else dtype)


def _quiet_generation(model: Any) -> None:
    """Greedy settings only: sampling options of the checkpoint would warn and not apply."""
    for name in ("temperature", "top_p", "top_k"):
        setattr(model.generation_config, name, None)
    model.generation_config.do_sample = False


def _load_advice(where: str, local: bool, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return _REMOTE_CODE.format(where)
    if local:
        return (
            f"cannot load the base {where}: {load_error(error)}; look at its config.json and "
            "tokenizer_config.json, or copy the base again"
        )
    return (
        f"cannot load {where!r} from the hub: {load_error(error)}; for a gated model set HF_TOKEN, "
        "without a network give a local folder"
    )
