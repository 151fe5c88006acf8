"""A patch as one safetensors file (docs/format.md): read defensively, written atomically and durably.

Reading trusts nothing: lengths, names, types, shapes, offsets and numbers are checked before they are used, no pickle
is involved, and whatever is wrong becomes one :class:`~rompatch.errors.PatchFileError` that names the file.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rompatch.patch import Array, Patch, PatchHeader
from rompatch.patchfile.checks import (
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    MAX_KEYS,
    DamageError,
    check_header,
    naming,
    require,
    spell,
)
from rompatch.patchfile.container import (
    container_header,
    factors_from,
    header_length,
    parse_container,
    rank_tensor,
    tensor_shapes,
)
from rompatch.patchfile.durable import atomic_write, is_temporary

__all__ = ["atomic_write", "from_bytes", "is_temporary", "read", "read_header", "to_bytes", "verify", "write"]


def to_bytes(patch: Patch) -> bytes:
    """The file's bytes: a function of the patch's content alone.

    Raises:
        PatchFileError: the patch breaks the format (shapes that do not fit its sites, NaN, a limit exceeded).
    """
    import numpy as np

    with naming(f"of {patch.header.subject!r} (not written)"):
        metadata = spell(patch.header)
        check_header(patch.header)
        require(len(patch.factors) == len(patch.header.sites), "it does not have one set of factors a site")
        tensors = dict(sorted(patch.named_tensors().items()))
        ranks = [
            len(np.atleast_1d(tensors.get(rank_tensor(patch.header, index), ()))) for index in range(len(patch.factors))
        ]
        for index, count in enumerate(ranks):
            require(1 <= count <= MAX_KEYS, f"site {index} has {count} keys", f"1 to {MAX_KEYS}")
        shapes = tensor_shapes(patch.header, ranks)
        require(shapes.keys() == tensors.keys(), "its tensors are not those of its format version")
        for name, array in tensors.items():
            require(array.shape == shapes[name], f"the shape of {name} is wrong", shapes[name], array.shape)
            require(bool(np.isfinite(array).all()), f"{name} contains NaN or infinity")
        header = container_header(metadata, shapes)
        body = b"".join(array.tobytes() for array in tensors.values())
        require(len(header) <= MAX_HEADER_BYTES, "its header is too long", f"{MAX_HEADER_BYTES} bytes", len(header))
        size = 8 + len(header) + len(body)
        require(size <= MAX_FILE_BYTES, "it is too large", f"at most {MAX_FILE_BYTES} bytes", size)
        return len(header).to_bytes(8, "little") + header + body


def from_bytes(data: bytes, name: str = "(bytes)") -> Patch:
    """The patch that *data* spells; *name* is what errors call it.

    Raises:
        PatchFileError: anything is wrong with it.
    """
    import numpy as np

    with naming(name):
        length = header_length(data[:8], len(data))
        header, shapes = parse_container(data[8 : 8 + length], len(data) - 8 - length)
        arrays: dict[str, Array] = {}
        offset = 8 + length
        for tensor, shape in shapes.items():
            count = math.prod(shape)
            array = np.frombuffer(data, dtype="<f4", count=count, offset=offset).reshape(shape)
            require(bool(np.isfinite(array).all()), f"tensor {tensor} contains NaN or infinity")
            arrays[tensor] = array.astype(np.float32)  # a copy: torch warns about read-only memory
            offset += 4 * count
        return Patch(header=header, factors=factors_from(header, arrays))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size. Pipes, devices and folders are refused: they have no size to check against."""
    with naming(str(path)):
        require(stat.S_ISREG(path.stat().st_mode), "it is not an ordinary file")
        with path.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size


def read(path: Path, expected_id: str | None = None) -> Patch:
    """The patch in the file at *path*; with *expected_id*, only if that is its content id.

    Raises:
        PatchFileError: missing, truncated, damaged, hostile, of a newer format, or another patch than expected.
    """
    with _opened(path) as (file, size):
        header_length(file.read(8), size)
        file.seek(0)
        patch = from_bytes(file.read(size), str(path))
        if expected_id is not None and patch.id != expected_id:
            raise DamageError("it holds another patch than its name says", expected_id, patch.id)
    return patch


def read_header(path: Path) -> PatchHeader:
    """The header alone: no tensor is read, so the content id is *not* checked (:func:`verify` does that).

    Raises:
        PatchFileError: as :func:`read`, as far as the header and the file's length show it.
    """
    with _opened(path) as (file, size):
        length = header_length(file.read(8), size)
        return parse_container(file.read(length), size - 8 - length)[0]


def verify(path: Path, expected_id: str) -> None:
    """Read the whole file and recompute its content id.

    Raises:
        PatchFileError: as :func:`read`; also when the id differs from *expected_id*.
    """
    read(path, expected_id)


def write(patch: Patch, path: Path) -> None:
    """Write *patch* to *path*, replacing what was there. A crash leaves the old file or the whole new one.

    Raises:
        OutputError: writing failed (disk full, read-only, no such folder); nothing is left behind.
        PatchFileError: the patch itself breaks the format.
    """
    atomic_write(path, to_bytes(patch))
