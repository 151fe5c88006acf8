"""Where each tensor of a checkpoint folder is: which file, from which byte to which, of what dtype and shape.

Only the headers of the safetensors files are read (8 bytes of length, little-endian, then that much JSON), so looking
into a folder of any size takes milliseconds and no memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch.errors import ModelError, OutputError, SiteError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000
"""Bytes; the limit that safetensors itself sets."""

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the dtypes that a base can have."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: ``size`` bytes from byte ``start`` of *shard*, row-major, little-endian."""

    name: str
    shard: str
    start: int
    size: int
    dtype: str
    shape: tuple[int, ...]

    def sha256(self, folder: Path) -> str:
        """sha256 of its bytes in *folder*."""
        digest = hashlib.sha256()
        with (folder / self.shard).open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()


def shard_names(folder: Path) -> dict[str, frozenset[str] | None]:
    """The safetensors files that make up the checkpoint, each with the tensors it holds (None: all that are in it).

    Raises:
        OutputError: the weights are only there in a pickled form.
        ModelError: there are no weights, or the index is damaged or names a file that is missing.
    """
    if (folder / SINGLE).is_file():  # comes first in transformers too
        return {SINGLE: None}
    if (folder / INDEX).is_file():
        return _from_index(folder)
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise OutputError(
            f"The weights in {folder} are pickled, and a checkpoint is baked byte by byte.",
            expected=SINGLE,
            found=", ".join(pickled[:3]),
            next_step="Convert it to safetensors first: load it with transformers and call save_pretrained(FOLDER).",
        )
    raise ModelError(f"The folder {folder} holds no weights.", expected=f"{SINGLE} or {INDEX}", found="neither")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in *folder* by its name there.

    Raises:
        ModelError: a file is missing, truncated or damaged.
        OutputError: the weights are only there in a pickled form.
    """
    found: dict[str, StoredTensor] = {}
    for shard, names in shard_names(folder).items():
        tensors = _read_header(folder, shard)
        if names is not None and not names <= tensors.keys():
            lost = sorted(names - tensors.keys())
            raise _damaged(folder / shard, f"{INDEX} says that {lost[0]} is in it, and it is not")
        found.update({name: tensor for name, tensor in tensors.items() if names is None or name in names})
    return found


def match_name(parameter: str, names: Iterable[str]) -> str:
    """The checkpoint's name for a module's parameter.

    They differ where a class adds or drops a prefix ("transformer.h.0..." is saved as "h.0..."), or nests its parts
    otherwise. The longest common ending decides; it must hold the layer's number and the name of the list before it.

    Raises:
        SiteError: no name ends alike, or several do.
    """
    known = set(names)
    if parameter in known:
        return parameter
    parts = parameter.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    last_start = max(numbered[0] - 1, 0) if numbered else 0
    for start in range(last_start + 1):
        ending = ".".join(parts[start:])
        matches = sorted(name for name in known if name == ending or name.endswith(f".{ending}"))
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise SiteError(
                f"The checkpoint has several tensors that could be {parameter}.", found=", ".join(matches[:4])
            )
    raise SiteError(
        f"The checkpoint has no tensor {parameter}.",
        expected="the checkpoint folder of the base that the patches were computed for",
        found=f"{len(known)} tensors, {', '.join(sorted(known)[:2])} among them",
        next_step="Tied or renamed weights are stored under one of their names only; save the base anew to write all.",
    )


def _from_index(folder: Path) -> dict[str, frozenset[str] | None]:
    try:
        weight_map = json.loads((folder / INDEX).read_bytes())["weight_map"]
        shards = {
            str(shard): frozenset(str(name) for name in weight_map if weight_map[name] == shard)
            for shard in sorted(set(weight_map.values()))
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / INDEX, f"{type(error).__name__}: {error}") from error
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ModelError(
                f"The checkpoint {folder} is incomplete.",
                expected=f"the file {shard}, which {INDEX} names",
                found="no such file beside it",
                next_step="Fetch or save the checkpoint again.",
            )
    return dict(shards)


def _read_header(folder: Path, shard: str) -> dict[str, StoredTensor]:
    path = folder / shard
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, total - 8):
            raise _damaged(path, f"a header of {length} bytes in a file of {total}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _place(name, shard, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    for tensor in tensors.values():
        if tensor.start < 8 + length or tensor.size < 0 or tensor.start + tensor.size > total:
            raise _damaged(path, f"{tensor.name} reaches outside the file of {total} bytes")
    return tensors


def _place(name: str, shard: str, entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    dtype = str(entry["dtype"])
    shape = tuple(int(size) for size in entry["shape"])
    return StoredTensor(name, shard, data_start + begin, end - begin, DTYPES.get(dtype, dtype), shape)


def _damaged(path: Path, found: str) -> ModelError:
    return ModelError(
        f"The file {path} is damaged.",
        expected="a whole safetensors checkpoint",
        found=found,
        next_step="Fetch or save the checkpoint again.",
    )
