"""A GGUF model with the stack in it: the edited tensors in a finer type, every other byte the base's own.

Four or five bits a weight destroy a rank-one change (docs/export-llamacpp.md), so the edited tensors are kept in
float16, Q8_0 or float32, whatever the file's other tensors are. The metadata is copied as bytes; the table of tensors
is written anew, since offsets move behind a tensor that has grown; the data is streamed, and read back before the file
gets its name.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import numpy.typing as npt

from rompatch.errors import OutputError
from rompatch.export.output import new_file

TYPES = {
    "float16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "float32": gguf.GGMLQuantizationType.F32,
}
"""What an edited tensor may be kept in."""

_PIECE = 1 << 22
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Placed:
    """One tensor of the new file: its entry in the old one, its bytes if it is edited, and its place in the data."""

    old: Any
    edited: Bytes | None
    kind: int
    size: int
    offset: int


def check_dtype(dtype: str) -> None:
    """Raises OutputError for a *dtype* that no edited tensor is kept in."""
    if dtype not in TYPES:
        raise OutputError(f"A tensor in a GGUF model is not kept in {dtype}.", expected=", ".join(TYPES), found=dtype)


def open_gguf(path: Path) -> gguf.GGUFReader:
    """The file's metadata and tensors, mapped.

    Raises:
        OutputError: it is damaged, one part of several, or of the other byte order.
    """
    try:
        reader = gguf.GGUFReader(path)
        parts = reader.fields["split.count"].contents() if "split.count" in reader.fields else 1
    except (ValueError, KeyError, IndexError, OSError, OverflowError, UnicodeDecodeError) as error:
        raise OutputError(
            f"The GGUF file {path} cannot be read.",
            found=" ".join(str(error).split())[:200] or type(error).__name__,
            next_step="Fetch the file again.",
        ) from error
    if parts != 1 or reader.byte_order == "S":
        raise OutputError(
            f"The GGUF file {path} is not one that can be edited.",
            expected="one whole file in this machine's byte order",
            found=f"one of {parts} parts" if parts != 1 else "the other byte order",
            next_step="Merge the parts first: `llama-gguf-split --merge`." if parts != 1 else None,
        )
    return reader


def architecture_in(reader: gguf.GGUFReader) -> str | None:
    """``general.architecture`` of the file."""
    field = reader.fields.get("general.architecture")
    return None if field is None else str(field.contents())


def matrix_in(reader: gguf.GGUFReader, name: str, path: Path) -> npt.NDArray[np.float32]:
    """The tensor *name* in float32, (d_out, d_in).

    Raises:
        OutputError: there is none.
    """
    tensor = next((tensor for tensor in reader.tensors if tensor.name == name), None)
    if tensor is None:
        raise OutputError(f"The GGUF file {path} has no tensor {name}.", next_step="Name a file of the patches' base.")
    values: npt.NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return values.reshape(tuple(reversed(tensor.shape.tolist()))).astype(np.float32)


def encoded(matrix: npt.NDArray[np.float32], dtype: str) -> Bytes:
    """The bytes of *matrix*, (d_out, d_in), in the type that *dtype* names.

    Raises:
        OutputError: its rows do not fill the type's blocks, or its numbers do not fit.
    """
    if dtype == "q8_0" and matrix.shape[1] % 32:
        raise OutputError(
            "The weight cannot be kept in Q8_0.",
            expected="rows of a multiple of 32 numbers",
            found=matrix.shape[1],
            next_step="Export with --dtype float16.",
        )
    if dtype == "float16" and np.abs(matrix).max() > np.finfo(np.float16).max:
        raise OutputError("The weight's numbers do not fit float16.", next_step="Export with --dtype float32.")
    kind = TYPES[dtype]
    data = gguf.quants.quantize(np.ascontiguousarray(matrix), kind)
    return np.ascontiguousarray(data).view(np.uint8).reshape(-1)


def decoded(data: Bytes, shape: Sequence[int], dtype: str) -> npt.NDArray[np.float32]:
    """What llama.cpp reads from the bytes of :func:`encoded`."""
    block, size = gguf.GGML_QUANT_SIZES[TYPES[dtype]]
    rows = data.reshape(shape[0], shape[1] // block * size)
    typed = rows if dtype == "q8_0" else rows.view(dtype)
    values: npt.NDArray[np.float32] = gguf.quants.dequantize(typed, TYPES[dtype])
    return values.reshape(shape).astype(np.float32)


def write_gguf_model(
    source: Path, out: Path, edited: Mapping[str, Bytes], dtype: str, *, base_folder: Path | None
) -> int:
    """Write *out*: the file *source* with the tensors in *edited* replaced, and return its size in bytes.

    Args:
        edited: tensor name to bytes in the type that *dtype* names.
        base_folder: the base's checkpoint, in which nothing is written.

    Raises:
        OutputError: *source* cannot be read, *out* exists or cannot be written; nothing of it is left.
    """
    reader = open_gguf(source)
    placed = list(_place(reader, edited, TYPES[dtype]))
    head = _head(reader, placed)
    with new_file(out, inside=base_folder) as work:
        with work.open("wb") as file:
            file.write(head)
            for tensor in sorted(placed, key=lambda one: one.offset):
                file.write(b"\0" * (len(head) + tensor.offset - file.tell()))
                _copy(_content(reader, tensor), file)
            file.write(b"\0" * (-file.tell() % int(reader.alignment)))
        _read_back(work, reader, placed)
        return work.stat().st_size


def _place(reader: gguf.GGUFReader, edited: Mapping[str, Bytes], kind: int) -> Iterator[_Placed]:
    """Every tensor with its new offset, in the order that the data has in the old file."""
    offset = 0
    for tensor in sorted(reader.tensors, key=lambda one: one.data_offset):
        data = edited.get(tensor.name)
        size = int(tensor.n_bytes) if data is None else len(data)
        yield _Placed(tensor, data, int(tensor.tensor_type) if data is None else int(kind), size, offset)
        offset += size + -size % int(reader.alignment)


def _head(reader: gguf.GGUFReader, placed: list[_Placed]) -> bytes:
    """Everything before the data: counts and metadata as they were, the table of tensors anew, in its old order."""
    start = min(tensor.field.offset for tensor in reader.tensors)
    head = reader.data[:start].tobytes()
    for tensor in sorted(placed, key=lambda one: int(one.old.field.offset)):
        length, name, n_dims, dims, _, _ = tensor.old.field.parts
        head += length.tobytes() + name.tobytes() + n_dims.tobytes() + dims.tobytes()
        head += np.uint32(tensor.kind).tobytes() + np.uint64(tensor.offset).tobytes()
    return head + b"\0" * (-len(head) % int(reader.alignment))


def _content(reader: gguf.GGUFReader, tensor: _Placed) -> Bytes:
    if tensor.edited is not None:
        return tensor.edited
    start = int(tensor.old.data_offset)
    content: Bytes = reader.data[start : start + tensor.size]
    return content


def _copy(content: Bytes, file: BinaryIO) -> None:
    for start in range(0, len(content), _PIECE):
        file.write(content[start : start + _PIECE].data)


def _read_back(work: Path, reader: gguf.GGUFReader, placed: list[_Placed]) -> None:
    again = gguf.GGUFReader(work)
    found = {tensor.name: tensor for tensor in again.tensors}
    same = list(again.fields) == list(reader.fields) and len(found) == len(placed)
    for tensor in placed:
        new = found[tensor.old.name]
        start = int(new.data_offset)
        content = again.data[start : start + tensor.size]
        same = same and int(new.n_bytes) == tensor.size and new.shape.tolist() == tensor.old.shape.tolist()
        same = same and np.array_equal(content, _content(reader, tensor))
    if not same:
        raise OSError(errno.EIO, "the file reads back otherwise than it was written")
