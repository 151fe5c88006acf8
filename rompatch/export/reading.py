"""What an export says about itself, read back: kind, patches, dtype of its numbers. Nothing is trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rompatch.errors import OutputError
from rompatch.export.gguf_lora import RECORD_FIELD
from rompatch.export.peft_lora import RECORD, WEIGHTS
from rompatch.export.provenance import RECORD_KEY, RECORD_VERSION
from rompatch.sites import dtype_name

MAX_RECORD_BYTES = 1 << 24
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FoundExport:
    """An export on the disk: its kind ("peft", "gguf", "delta"), where it is, and the ids of its patches."""

    kind: str
    path: Path
    dtype: str
    patch_ids: tuple[str, ...]


def read_export(path: Path) -> FoundExport:
    """The export at *path*: an adapter folder, a GGUF adapter, or a delta file.

    Raises:
        OutputError: it is none of these, was not written by rompatch, or is damaged.
    """
    with _naming(path):
        if path.is_dir():
            text, dtype = _small_text(path / RECORD), _tensors_dtype(path / WEIGHTS)
        elif _magic(path) == b"GGUF":
            text, dtype = _gguf_record(path)
        else:
            text, dtype = _metadata(path), _tensors_dtype(path)
        record = json.loads(text)
        if record[RECORD_KEY] != RECORD_VERSION:
            raise ValueError(f"a record of version {record[RECORD_KEY]!r}")
        ids = [str(patch_id) for patch_id in record["patches"]]
        if not ids or not all(map(_ID.fullmatch, ids)) or record["kind"] not in ("peft", "gguf", "delta"):
            raise ValueError("a record without patches")
        return FoundExport(str(record["kind"]), path, dtype, tuple(ids))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, SafetensorError) as error:
        raise OutputError(
            f"{path} is no export that can be checked.",
            expected="what `rompatch export peft`, `gguf` or `delta` wrote",
            found=" ".join(str(error).split())[:200] or type(error).__name__,
            next_step="Name the folder or file of an export, or write it anew.",
        ) from error


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _small_text(path: Path) -> str:
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {path.stat().st_size} bytes")
    return path.read_text(encoding="utf-8")


def _metadata(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {})[RECORD_KEY])


def _tensors_dtype(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        (dtype,) = {dtype_name(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118 - no mapping
    return dtype


def _gguf_record(path: Path) -> tuple[str, str]:
    import gguf

    reader = gguf.GGUFReader(path)
    (kind,) = {tensor.tensor_type.name for tensor in reader.tensors}
    found: Any = reader.fields[RECORD_FIELD].contents()
    return str(found), {"F32": "float32", "F16": "float16"}[kind]
