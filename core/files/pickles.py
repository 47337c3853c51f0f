"""Messages for weights that are pickles, which are never read: the command that converts them.

Both commands read tensors and nothing else (`weights_only`), so that they run no code.
"""

import shlex
from pathlib import Path

SUFFIXES = (".bin", ".pt", ".pth", ".pkl")
_RUNS = "which can run code and is never read"


def pickled_adapter(folder: Path, name: str, wanted: str) -> str:
    """Of an adapter folder that holds a pickle and no safetensors.

    Args:
        folder: of the adapter.
        name: of the pickle.
        wanted: name of the file that is missing.
    """
    code = (
        "import torch, safetensors.torch as s; "
        f"t = torch.load({str(folder / name)!r}, map_location='cpu', weights_only=True); "
        "t = {k: v.clone().contiguous() for k, v in t.items()}; "
        f"s.save_file(t, {str(folder / wanted)!r})"
    )
    return (
        f"{folder} holds its weights as a pickle ({name}), {_RUNS}; ask its author for "
        f"safetensors, or convert it, which runs none: python -c {shlex.quote(code)}"
    )


def pickled_model(folder: Path) -> str:
    """Of a model's folder that holds pickles and no safetensors; empty of any other folder."""
    files = [p for p in folder.iterdir() if p.is_file()]
    names = sorted(p.name for p in files if p.name.startswith("pytorch_model") and _is_pickle(p))
    names = names or sorted(p.name for p in files if _is_pickle(p))
    if not names or any(p.suffix == ".safetensors" for p in files):
        return ""
    new = str(folder).rstrip("/") + "-safetensors"
    code = (
        "import pathlib, shutil, transformers as t; "
        f"a, b = map(pathlib.Path, ({str(folder)!r}, {new!r})); "
        "t.AutoModelForCausalLM.from_pretrained(a, dtype='auto').save_pretrained(b); "
        "[shutil.copy(p, b) for p in a.iterdir() if p.suffix in ('.json', '.jinja', '.model', "
        "'.txt') and 'index' not in p.name and not (b / p.name).exists()]"
    )
    return (
        f"{folder} holds its weights as a pickle ({names[0]}), {_RUNS}; convert it, which runs "
        f"none, and give {new}: python -c {shlex.quote(code)}"
    )


def _is_pickle(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.name.startswith("training_args")
