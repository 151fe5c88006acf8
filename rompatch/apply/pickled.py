"""Pickled weights (``pytorch_model.bin``): read as tensors and nothing else, written out as safetensors.

torch maps the file into memory and unpickles no code (``weights_only``), so a shard costs address space, not memory.
This is the only form of checkpoint that needs torch.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.apply.stored import DTYPES, StoredTensor, damaged

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"

_SAFETENSORS_NAMES = {
    **{name: short for short, name in DTYPES.items()},
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True, eq=False)
class PickledTensor(StoredTensor):
    """One tensor of a mapped file, contiguous; ``start`` means nothing."""

    values: Tensor

    def read(self, folder: Path, begin: int, count: int) -> bytes:
        """*count* of its bytes, row-major, from byte *begin* on."""
        import torch

        flat = self.values.view(-1)
        width = flat.element_size()
        first, last = begin // width, -(-(begin + count) // width)
        data = flat[first:last].view(torch.uint8).numpy().tobytes()
        return data[begin - first * width :][:count]


def read_file(folder: Path, shard: str) -> dict[str, StoredTensor]:
    """The tensors in the pickled file *shard*, mapped.

    Raises:
        ModelError: it is damaged, or holds anything but plain tensors.
    """
    import torch

    path = folder / shard
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:  # torch's older form, which cannot be mapped
            if "mmap" not in str(error):
                raise
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        raise damaged(path, " ".join(str(error).split())[:200] or type(error).__name__) from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise damaged(path, "something else than a table of tensors")
    return {str(name): _stored(path, str(name), tensor) for name, tensor in found.items()}


def _stored(path: Path, name: str, tensor: Tensor) -> StoredTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _SAFETENSORS_NAMES or str(tensor.layout) != "torch.strided":
        raise damaged(path, f"{name} is of {dtype}, which no plain checkpoint has")
    short = _SAFETENSORS_NAMES[dtype]
    size = tensor.numel() * tensor.element_size()
    values = tensor.detach().contiguous()
    return PickledTensor(name, path.name, 0, size, DTYPES.get(short, short), tuple(tensor.shape), values)


def renamed(shard: str) -> str:
    """What the safetensors file made of *shard* is called: as transformers would call it."""
    return shard.replace("pytorch_model", "model", 1).removesuffix(".bin") + ".safetensors"


def renamed_index(index: str) -> str:
    """The same for the index."""
    return index.replace("pytorch_model.bin", "model.safetensors", 1)


def write_safetensors(
    folder: Path, tensors: Iterable[StoredTensor], target: Path, on_bytes: Callable[[int], None]
) -> None:
    """The new file *target* with *tensors* of *folder*, a piece at a time; *on_bytes* hears how many were written."""
    # The widest numbers first: every tensor then begins at a multiple of its own width.
    ordered = sorted(tensors, key=lambda tensor: (-_width(tensor), tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": _SAFETENSORS_NAMES.get(tensor.dtype, tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with target.open("xb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in ordered:
            for piece in tensor.pieces(folder):
                file.write(piece)
                on_bytes(len(piece))


def write_index(tensors: Sequence[StoredTensor], target: Path) -> None:
    """The index of a checkpoint whose files were made of those that *tensors* are in."""
    index = {
        "metadata": {"total_size": sum(tensor.size for tensor in tensors)},
        "weight_map": {tensor.name: renamed(tensor.shard) for tensor in sorted(tensors, key=lambda one: one.name)},
    }
    target.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _width(tensor: StoredTensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return tensor.size // count if count else 1
