"""Adapters from outside: where they are, what they are, and what is recorded beside them."""

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.console import say
from ..core.errors import AdapterError, LoratomyError
from ..core.rendering.recorded import RENDERING

if TYPE_CHECKING:
    from ..core.adapter.factors import Adapter
    from ..core.model.subject import Subject

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_CHANGED = "{} changed while the adapter was read; run the command again when nobody writes to it"


def adapter_sums(folder: Path) -> dict[str, str]:
    """Checksums of an adapter's files, after a first look at the folder."""
    from ..core.adapter.safety import check_folder
    from ..core.files.atomic import sha256

    files = check_folder(folder).files
    recorded = [RENDERING] if (folder / RENDERING).is_file() else []
    return {name: sha256(folder / name) for name in (*files, *recorded)}


def copy_adapter(source: Path, sums: Mapping[str, str], work: Path) -> None:
    """Copy an adapter, and what is recorded of its template.

    Args:
        source: the adapter's folder.
        sums: what `adapter_sums` said of it.
        work: folder for the copy.

    Raises:
        AdapterError: a file is not what it was when it was looked at.
    """
    from ..core.files.atomic import sha256

    for name, known in sums.items():
        try:
            shutil.copyfile(source / name, work / name)
        except FileNotFoundError as error:
            raise AdapterError(_CHANGED.format(source / name)) from error
        if sha256(work / name) != known:
            raise AdapterError(_CHANGED.format(source / name))


_SAYS_NOTHING = re.compile(
    r"(adapters?|adapter_model|lora|model|outputs?|results?|final|checkpoint-\d+|[0-9a-f]{40})",
    re.I,
)
"""Names of adapter folders that many have: a run takes the name of the folder above too."""


def run_name(subject: Path, data: str) -> str:
    """A run's name from those of what it is about."""
    place = subject.resolve() if subject.exists() else subject
    owner = place.parent.name + "-" if _SAYS_NOTHING.fullmatch(place.name) else ""
    names = (owner + place.stem, Path(data).stem)
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") for name in names]
    return "-on-".join(part for part in parts if part)[:80] or "run"


HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
ADAPTER_PATTERNS = (
    *("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"),
    *("chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "generation_config.json"),
)
"""What is fetched of an adapter on the hub: safetensors and texts, no pickles and no code."""
_QUANTISED = re.compile(r"(-unsloth)?-(bnb-)?[48]bit$|-(gptq|awq|gguf|fp8|int[48])(-int[48])?$")
ABSURD = 10.0
"""Times the base's weights' norm above which an adapter's change is said to be too large."""


def fetched(source: str, patterns: Sequence[str], what: str) -> Path:
    """The folder of a hub id ``owner/name[@revision]``, fetched; only files of some patterns.

    Raises:
        LoratomyError: no hub id, or the hub cannot be reached or has not got it.
    """
    found = HUB_ID.fullmatch(source)
    if not found or source.startswith(("./", "../")):
        raise LoratomyError(f"the {what} {source!r} is neither a folder nor a hub id (owner/name)")
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"fetching {source}")
    wrong = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, HTTPError)
    try:
        return Path(
            snapshot_download(
                found["id"], revision=found["revision"], allow_patterns=list(patterns)
            )
        )
    except wrong as error:  # its text may hold the token
        raise LoratomyError(
            f"cannot fetch {source!r} from the hub ({type(error).__name__}), and there is no "
            "folder of that name; for a gated one set HF_TOKEN, without a network give a local "
            "folder"
        ) from error


def located(given: Path, option: str) -> Path:
    """The folder of an adapter: as given, or fetched from the hub.

    Args:
        given: a folder, or a hub id.
        option: what comes before the path in the command, e.g. ``--adapter``.

    Raises:
        LoratomyError: neither; or a folder whose sub-folders hold adapters, which are named.
    """
    from ..core.adapter.safety import CONFIG, below

    text = str(given)
    folder = given if given.exists() else None
    if folder is None:
        if not HUB_ID.fullmatch(text):
            raise AdapterError(f"the adapter {text} does not exist; give the folder with {CONFIG}")
        folder = fetched(text, ADAPTER_PATTERNS, "adapter")
    if folder.is_dir() and not (folder / CONFIG).exists() and (found := below(folder)):
        names = ", ".join(str(p.relative_to(folder)) for p in found[-6:])
        more = f" and {len(found) - 6} more" * (len(found) > 6)
        raise AdapterError(
            f"{folder} holds no {CONFIG}, but sub-folders of it do: {names}{more}; give one of "
            f"them, e.g. {option} {shlex.quote(str(found[-1]))}"
        )
    return folder


def other_base(folder: Path, base: str) -> str:
    """A sentence where an adapter names another base than the one given; else empty.

    Only the last parts of the names count, without regard to case or quantisation, and one may end
    in the other. What the adapter says is never followed.
    """
    from ..core.adapter.safety import check_folder

    named = check_folder(folder).config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named.strip():
        return ""
    one, other = _plain(named), _plain(base)
    if not one or one.endswith(other) or other.endswith(one):
        return ""
    return (
        f"warning: the adapter {folder} says that it was trained on {named!r}, the base given is "
        f"{base!r}; on another base it is another model"
    )


def _plain(name: str) -> str:
    """A model's name for comparing: the last part of a path or hub id, without quantisation."""
    path = name.strip().rstrip("/")
    if cached := re.search(r"models--[^/]*--([^/]+)/snapshots/", path + "/"):
        last = cached[1]
    else:
        last = Path(path).name or Path(path).resolve().name
        last = Path(last).resolve().name if last in (".", "..") else last
    last = last.lower()
    while (shorter := _QUANTISED.sub("", last)) != last:
        last = shorter
    return last


def of_size(subject: "Subject", adapter: "Adapter", role: str) -> str:
    """A sentence where an adapter changes nothing, or weights absurdly much; else empty."""
    from ..analysis.weights.spectra import relative_size

    share, name = relative_size(subject.model, adapter)
    if share == 0:
        return (
            f"warning: the {role} adapter changes nothing: dW is zero in all "
            f"{len(adapter.modules)} modules (every lora_B or lora_A is 0), as before training"
        )
    if share > ABSURD:
        return (
            f"warning: the {role} adapter changes {name} by {share:.3g} times the norm of the "
            "base's weight there; whole adapters change weights by a few per cent: a damaged file, "
            "or a wrong lora_alpha? Analyses that cannot be made of it are left out"
        )
    return ""
