"""One tensor of a checkpoint: where its bytes are, and how to read some of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rompatch.errors import ModelError

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the dtypes that a weight can have. Others keep safetensors' own name."""

_PIECE = 1 << 22


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: ``size`` bytes from byte ``start`` of *shard*, row-major, little-endian."""

    name: str
    shard: str
    start: int
    size: int
    dtype: str
    shape: tuple[int, ...]

    def read(self, folder: Path, begin: int, count: int) -> bytes:
        """*count* of its bytes from its own byte *begin* on.

        Raises:
            ModelError: the file ends before that.
        """
        with (folder / self.shard).open("rb", buffering=0) as file:
            file.seek(self.start + begin)
            pieces, left = [], count
            while left and (piece := file.read(left)):
                pieces.append(piece)
                left -= len(piece)
        if left:
            raise damaged(folder / self.shard, f"it ends inside {self.name}")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def pieces(self, folder: Path, step: int = _PIECE) -> Iterator[bytes]:
        """All of its bytes, *step* at a time."""
        return (self.read(folder, begin, min(step, self.size - begin)) for begin in range(0, self.size, step))

    def sha256(self, folder: Path) -> str:
        """sha256 of its bytes in *folder*."""
        digest = hashlib.sha256()
        for piece in self.pieces(folder):
            digest.update(piece)
        return digest.hexdigest()


def damaged(path: Path, found: str) -> ModelError:
    """The error for a file of a checkpoint that is not what it should be."""
    return ModelError(
        f"The file {path} is damaged.",
        expected="a whole checkpoint",
        found=found,
        next_step="Fetch or save the checkpoint again.",
    )
