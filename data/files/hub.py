"""Data sets on the Hugging Face hub, streamed."""

import os
import re
from collections.abc import Iterator
from typing import Any

from ...core.errors import DataError, LoratomyError

_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:/(?P<config>[\w.-]+)(?=:))?(?::(?P<split>[\w.-]+))?"
)
_FILES = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab", ".txt", ".parquet", ".arrow"),
    *(".feather", ".gz", ".bz2", ".zip", ".xz", ".zst"),
)


def is_hub_id(source: str) -> bool:
    """Whether a name reads ``owner/name``, ``owner/name:split`` or ``owner/name/config:split``.

    A name that ends like a data file is one that is missing, not a data set.
    """
    return bool(_ID.fullmatch(source)) and not source.lower().endswith(_FILES)


def hub_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a data set on the hub, each with the data set and split that it is from.

    Without a split in the name the only one is read, else ``train``.

    Raises:
        DataError: the hub or the data set is out of reach, or it has no such split.
    """
    parts = _ID.fullmatch(source)
    if parts is None:
        raise DataError(f"{source!r} is no hub id; write owner/name or owner/name:split")
    try:
        from datasets import load_dataset

        loaded: Any = load_dataset(parts["name"], parts["config"], streaming=True)
        split = parts["split"] or (next(iter(loaded)) if len(loaded) == 1 else "train")
        if split not in loaded:
            raise DataError(
                f"{source} has the splits {sorted(loaded)}; name one as owner/name:split"
            )
        label = source if parts["split"] else f"{source}:{split}"
        for row in loaded[split]:
            yield label, row
    except LoratomyError:
        raise
    except Exception as error:  # network, cache, format: datasets fails in every way
        raise DataError(
            f"no file {source}, and the data set of that name does not stream from the Hugging "
            f"Face hub ({type(error).__name__}: {_safe(error)}); give a JSON, JSONL or CSV file "
            "instead, set HF_HOME to a cache that holds it, or HF_TOKEN where it is private"
        ) from None  # the chained traceback would show what `_safe` took out


def _safe(error: Exception) -> str:
    """The error in one short line without tokens or the signatures in addresses."""
    text = " ".join(str(error).split())
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name, "").strip():
            text = text.replace(token, "***")
    text = re.sub(r"hf_\w+", "***", text)
    return re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", text)[:300]
