"""Where each tensor of a checkpoint folder is: which file, from which byte to which, of what dtype and shape.

Only the headers of safetensors files are read (8 bytes of length, little-endian, then that much JSON), so looking into
a folder of any size takes milliseconds and no memory. Pickled weights are mapped (:mod:`rompatch.apply.pickled`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch.apply import pickled
from rompatch.apply.stored import DTYPES, StoredTensor, damaged
from rompatch.errors import ModelError, SiteError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000
"""Bytes; the limit that safetensors itself sets."""

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
_BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}


@dataclass(frozen=True)
class Layout:
    """The files that make up a checkpoint.

    Args:
        shards: each file with the tensors it holds (None: all that are in it).
        index: the file that says so, if there is one.
        pickled: whether they are ``pytorch_model.bin`` files.
    """

    shards: Mapping[str, frozenset[str] | None]
    index: str | None
    pickled: bool = False

    @property
    def files(self) -> frozenset[str]:
        """All of them."""
        return frozenset(self.shards) | ({self.index} if self.index is not None else set())


def find_layout(folder: Path) -> Layout:
    """What the checkpoint in *folder* consists of; where several forms are there, the one that transformers takes.

    Raises:
        ModelError: there are no weights, or the index is damaged or names a file that is missing.
    """
    for single, index, is_pickled in ((SINGLE, INDEX, False), (pickled.SINGLE, pickled.INDEX, True)):
        if (folder / single).is_file():
            return Layout({single: None}, None, is_pickled)
        if (folder / index).is_file():
            return Layout(_from_index(folder, index), index, is_pickled)
    raise ModelError(
        f"The folder {folder} holds no weights.",
        expected=f"{SINGLE}, {INDEX}, {pickled.SINGLE} or {pickled.INDEX}",
        found="none of them",
        next_step="Name the folder that the checkpoint's config.json is in.",
    )


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in *folder* by its name there.

    Raises:
        ModelError: a file is missing, truncated or damaged, or holds other tensors than the index says.
    """
    layout = find_layout(folder)
    found: dict[str, StoredTensor] = {}
    for shard, names in layout.shards.items():
        tensors = pickled.read_file(folder, shard) if layout.pickled else _read_header(folder, shard)
        if names is not None and not names <= tensors.keys():
            lost = sorted(names - tensors.keys())
            raise damaged(folder / shard, f"{layout.index} says that {lost[0]} is in it, and it is not")
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
                f"The checkpoint has several tensors that could be {parameter}.",
                found=", ".join(matches[:4]),
                next_step="Save the base anew with transformers, which gives every tensor its whole name.",
            )
    raise SiteError(
        f"The checkpoint has no tensor {parameter}.",
        expected="the checkpoint folder of the base that the patches were computed for",
        found=f"{len(known)} tensors, {', '.join(sorted(known)[:2])} among them",
        next_step="Tied or renamed weights are stored under one of their names only; save the base anew to write all.",
    )


def _from_index(folder: Path, index: str) -> dict[str, frozenset[str] | None]:
    try:
        weight_map = json.loads((folder / index).read_bytes())["weight_map"]
        shards = {
            str(shard): frozenset(str(name) for name in weight_map if weight_map[name] == shard)
            for shard in sorted(set(weight_map.values()))
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder / index, f"{type(error).__name__}: {error}") from error
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ModelError(
                f"The checkpoint {folder} is incomplete.",
                expected=f"the file {shard}, which {index} names",
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
            raise damaged(path, f"a header of {length} bytes in a file of {total}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _place(name, shard, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    for name, tensor in tensors.items():
        if tensor.start < 8 + length or tensor.size < 0 or tensor.start + tensor.size > total:
            raise damaged(path, f"{name} reaches outside the file of {total} bytes")
        bits = _BITS.get(header[name]["dtype"])
        if bits is not None and 8 * tensor.size != bits * math.prod(tensor.shape):
            raise damaged(path, f"{name} has {tensor.size} bytes, which its dtype and shape do not need")
    return tensors


def _place(name: str, shard: str, entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    dtype = str(entry["dtype"])
    shape = tuple(int(size) for size in entry["shape"])
    return StoredTensor(name, shard, data_start + begin, end - begin, DTYPES.get(dtype, dtype), shape)
