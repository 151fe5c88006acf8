"""The safetensors container around a patch: which tensors, in which order, at which offsets.

A patch has exactly one spelling: the container's header is determined by the content, byte by byte, so equal patches
are equal files. We spell it out instead of asking the safetensors library, because ids and golden files must outlive a
library's choice of order; a test holds that the library writes the same bytes and reads them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rompatch.patch import (
    ADAPTER_VERSION,
    FORMAT_VERSION,
    LOW_RANK_NAMES,
    SOLVED_NAMES,
    SOLVED_VERSION,
    Array,
    Factors,
    LowRankFactors,
    PatchHeader,
    SiteFactors,
    SiteRef,
)
from rompatch.patchfile.checks import (
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    MAX_KEYS,
    DamageError,
    header_from,
    parse_json,
    require,
)

METADATA_KEY = "rompatch"
"""The only key of the safetensors metadata."""

Shapes = Mapping[str, tuple[int, ...]]


def tensor_shapes(header: PatchHeader, ranks: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a patch, in ascending order of name. ``ranks[i]`` belongs to site ``i``: its
    number of keys, or in format 2 its rank."""
    shape_of = _SHAPES[header.format_version]
    shapes = {
        f"site.{index}.{name}": shape
        for index, (site, rank) in enumerate(zip(header.sites, ranks, strict=True))
        for name, shape in shape_of(site, rank).items()
    }
    return dict(sorted(shapes.items()))


def _keyed_shapes(site: SiteRef, n_keys: int) -> dict[str, tuple[int, ...]]:
    return {"v": (site.d_out,), **_solved_shapes(site, n_keys)}


def _solved_shapes(site: SiteRef, n_keys: int) -> dict[str, tuple[int, ...]]:
    return {
        "u": (n_keys, site.d_in),
        "key": (n_keys, site.d_in),
        "value": (n_keys, site.d_out),
        "base_out": (n_keys, site.d_out),
    }


def _low_rank_shapes(site: SiteRef, rank: int) -> dict[str, tuple[int, ...]]:
    return {"left": (site.d_out, rank), "right": (rank, site.d_in)}


_SHAPES = {FORMAT_VERSION: _keyed_shapes, ADAPTER_VERSION: _low_rank_shapes, SOLVED_VERSION: _solved_shapes}


def rank_tensor(header: PatchHeader, index: int) -> str:
    """The tensor of site *index* whose number of rows is the one free size: its keys, or its rank."""
    return f"site.{index}.{'right' if header.format_version == ADAPTER_VERSION else 'key'}"


def factors_from(header: PatchHeader, arrays: Mapping[str, Array]) -> tuple[Factors, ...]:
    """The factors of every site, from arrays by the names of :func:`tensor_shapes`."""
    sites = range(len(header.sites))
    if header.format_version == ADAPTER_VERSION:
        return tuple(LowRankFactors(**{name: arrays[f"site.{n}.{name}"] for name in LOW_RANK_NAMES}) for n in sites)
    return tuple(
        SiteFactors(v=arrays.get(f"site.{n}.v"), **{name: arrays[f"site.{n}.{name}"] for name in SOLVED_NAMES})
        for n in sites
    )


def container_header(metadata: str, shapes: Shapes) -> bytes:
    """The safetensors header, padded with spaces to a multiple of 8 bytes; tensors follow each other without gaps."""
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: metadata}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def header_length(first8: bytes, file_size: int) -> int:
    """Length in bytes of the JSON header, checked against the file's size."""
    require(file_size <= MAX_FILE_BYTES, "it is too large", f"at most {MAX_FILE_BYTES} bytes", f"{file_size} bytes")
    require(len(first8) == 8, "it is too short to be a safetensors file", "at least 8 bytes", f"{file_size} bytes")
    length = int.from_bytes(first8, "little")
    require(length <= MAX_HEADER_BYTES, "its header is absurdly long", f"at most {MAX_HEADER_BYTES} bytes", length)
    require(8 + length <= file_size, "it is truncated inside its header", f"{8 + length} bytes", f"{file_size} bytes")
    return length


def _entry_shape(entry: object, name: str, body_size: int) -> list[int]:
    """The shape one tensor declares, after checking its dtype and that its offsets lie inside the file."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise DamageError(f"the entry of tensor {name} is malformed")
    require(entry["dtype"] == "F32", f"tensor {name} has the wrong dtype", "F32", repr(entry["dtype"])[:40])
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        whole = isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)
        require(whole, f"shape or offsets of tensor {name} are no list of whole numbers")
    require(len(offsets) == 2, f"tensor {name} must have two offsets")
    inside = offsets[0] <= offsets[1] <= body_size
    require(inside, f"tensor {name} lies outside the file (truncated?)", f"within {body_size} bytes", offsets)
    return list(shape)


def parse_container(raw: bytes, body_size: int) -> tuple[PatchHeader, dict[str, tuple[int, ...]]]:
    """Header and tensor shapes from the safetensors header, proven to cover the file exactly and without overlap."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise DamageError("its header is not UTF-8, so it is no safetensors file") from None
    entries = parse_json(text, "its safetensors header")
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {METADATA_KEY} or type(metadata[METADATA_KEY]) is not str:
        raise DamageError("it is not a patch", f"one metadata text {METADATA_KEY!r}", "other metadata or none")
    header = header_from(metadata[METADATA_KEY])
    wanted = tensor_shapes(header, [1] * len(header.sites)).keys()
    missing, unknown = sorted(wanted - entries.keys()), sorted(entries.keys() - wanted)
    require(not missing, "tensors are missing", found=f"no {missing[:5]}")
    require(not unknown, "it has tensors that no site explains", found=str(unknown[:5])[:200])
    found = {name: _entry_shape(entries[name], name, body_size) for name in wanted}
    ranks = [(found[rank_tensor(header, index)] or [0])[0] for index in range(len(header.sites))]
    for index, count in enumerate(ranks):
        require(1 <= count <= MAX_KEYS, f"the number of keys at site {index} is absurd", f"1 to {MAX_KEYS}", count)
    shapes = tensor_shapes(header, ranks)
    for name, shape in shapes.items():
        require(found[name] == list(shape), f"tensor {name} has the wrong shape", list(shape), found[name])
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    require(size == body_size, "its length does not fit its tensors", f"{size} bytes of data", f"{body_size} bytes")
    same = container_header(metadata[METADATA_KEY], shapes) == raw
    require(same, "its safetensors header is not in canonical spelling (offsets, order, white space)")
    return header, shapes
