"""Models and adapters that are in memory already: taken up without changing them."""

import copy
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ..adapter.factors import Adapter, read_adapter
from ..errors import LoratomyError
from ..rendering.prompts import Renderer
from ..rendering.rendering import Rendering
from ..rendering.templates import PLAIN
from .families import check_family, family_of
from .loading import quiet_generation
from .subject import Subject
from .tokenizer import check_vocabulary

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def subject_given(model: Any, tokenizer: Any) -> Subject:
    """A loaded model with its tokenizer as a subject; the model itself stays as it is.

    The subject shares every weight with the model and nothing else: it has modules of its own, in
    eval mode and without hooks and adapters.

    Args:
        model: a `PreTrainedModel`, or a `PeftModel` around one, whose adapters are left out.
        tokenizer: its tokenizer.

    Raises:
        LoratomyError: no such model, one that other code has hooked into, a family that is not
            known, or no tokenizer.
    """
    if tokenizer is None:
        raise LoratomyError("a loaded model needs its tokenizer: open(model, ..., tokenizer=...)")
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not (isinstance(plain, nn.Module) and hasattr(plain, "config")):
        raise LoratomyError(
            f"the base is a {type(model).__name__}; give a folder, a hub id, or a loaded "
            "transformers model"
        )
    if hooked := next((n for n, m in plain.named_modules() if hasattr(m, "_hf_hook")), None):
        raise LoratomyError(
            f"the model's {hooked or 'own forward'} was replaced by accelerate (device_map); give "
            "the base's folder or hub id instead"
        )
    own: Any = _shared(plain, {})
    if hasattr(own, "peft_config"):
        del own.peft_config
    own.eval()
    own.generation_config = copy.deepcopy(own.generation_config)
    quiet_generation(own)
    name = str(getattr(plain.config, "_name_or_path", "") or type(plain).__name__)
    check_vocabulary(tokenizer, own.get_input_embeddings().weight.shape[0], name)
    family = family_of(own.config)
    check_family(own, family)
    stand_in = Rendering(template=PLAIN[0], end=".")
    return Subject(own, Renderer(tokenizer, stand_in), family, name)


def _shared(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """The same modules on the same parameters, without hooks and PEFT's layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    while isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        inner: Any = module
        module = (
            inner.get_base_layer() if isinstance(inner, BaseTunerLayer) else inner.original_module
        )
    if id(module) in seen:
        return seen[id(module)]
    twin = seen[id(module)] = copy.copy(module)
    twin.__dict__.update({name: OrderedDict() for name in _HOOKS if name in twin.__dict__})
    twin._parameters = dict(module._parameters)
    twin._buffers = dict(module._buffers)
    twin._modules = {
        name: child if child is None else _shared(child, seen)
        for name, child in module._modules.items()
    }
    return twin


def adapter_given(model: Any, subject: Subject) -> Adapter:
    """The active adapter of a `PeftModel`, through the gate.

    Raises:
        LoratomyError: no `PeftModel`, or several adapters are active.
        AdapterError: it cannot be represented exactly.
    """
    if not hasattr(model, "peft_config"):
        raise LoratomyError(
            f"the adapter is a {type(model).__name__}; give its folder, a hub id, or a PeftModel"
        )
    active = model.active_adapters
    if len(active) != 1:
        raise LoratomyError(f"{len(active)} adapters are active ({', '.join(active)}); set one")
    with TemporaryDirectory(prefix="loratomy-") as folder:
        model.save_pretrained(folder, selected_adapters=list(active), save_embedding_layers=False)
        place = Path(folder) if active[0] == "default" else Path(folder) / active[0]
        return read_adapter(place, subject.shapes, base=subject.parameter)
