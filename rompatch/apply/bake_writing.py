"""The writing half of a bake: the base's files copied, then the edited tensors' bytes made anew in the copy."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rompatch.apply import pickled
from rompatch.apply.bake_plan import Plan
from rompatch.apply.baked import Edit, Rewritten
from rompatch.apply.copying import OnBytes, copy_file, link_file, write_whole
from rompatch.apply.floats import STORAGE, decode, encode
from rompatch.apply.rounding import RoundingMeter
from rompatch.apply.rows import exact_rows, row_blocks
from rompatch.apply.stored import StoredTensor


def copy_base(folder: Path, work: Path, plan: Plan, base: Mapping[str, StoredTensor], on_bytes: OnBytes) -> int:
    """Fill *work* with the unedited checkpoint in *folder*; how many files were linked.

    Raises:
        OSError: the disk is full, or a file cannot be read or written.
    """
    linked = 0
    for source, name in plan.files:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        if source in plan.links and link_file(folder / source, work / name):
            linked += 1
        else:
            copy_file(folder / source, work / name, on_bytes)
    if plan.layout.pickled:
        for shard in plan.layout.shards:
            tensors = [tensor for tensor in base.values() if tensor.shard == shard]
            pickled.write_safetensors(folder, tensors, work / pickled.renamed(shard), on_bytes)
        if plan.layout.index is not None:
            pickled.write_index(list(base.values()), work / pickled.renamed_index(plan.layout.index))
    return linked


def rewrite(work: Path, place: StoredTensor, edit: Edit) -> Rewritten:
    """Edit one tensor of the copy in *work* in place, some rows at a time.

    Raises:
        OSError: the copy is not the base's tensor, or cannot be written.
        ComputeError: an edited value does not fit the dtype.
    """
    meter = RoundingMeter(edit.update, edit.probes, transposed=edit.site.transposed)
    before, after = hashlib.sha256(), hashlib.sha256()
    with (work / place.shard).open("r+b", buffering=0) as file:
        for rows in row_blocks(*place.shape):
            raw, made = _rewrite_rows(file, place, edit, rows, meter)
            before.update(raw)
            after.update(made)
    if before.hexdigest() != edit.site.sha256:
        raise OSError(errno.EIO, f"{place.name} was not copied as it is; did the base change meanwhile?")
    return Rewritten(
        parameter=edit.site.parameter,
        stored_as=place.name,
        shard=place.shard,
        dtype=place.dtype,
        shape=place.shape,
        sha256_before=edit.site.sha256,
        sha256_after=after.hexdigest(),
        rounding=meter.results(),
    )


def _rewrite_rows(
    file: BinaryIO, place: StoredTensor, edit: Edit, rows: slice, meter: RoundingMeter
) -> tuple[bytes, memoryview]:
    """Edit some rows; their bytes before and after."""
    kind = np.dtype(STORAGE[place.dtype])
    width = place.shape[1] * kind.itemsize
    file.seek(place.start + rows.start * width)
    raw = _exactly(file, (rows.stop - rows.start) * width)
    stored = np.frombuffer(raw, kind).reshape(-1, place.shape[1])
    exact = exact_rows(stored, place.dtype, edit.update, rows, transposed=edit.site.transposed)
    made = encode(exact, place.dtype)
    meter.add(rows, decode(made, place.dtype) - exact)
    file.seek(place.start + rows.start * width)
    whole = made.data.cast("B")
    write_whole(file, whole)
    return raw, whole


def _exactly(file: BinaryIO, count: int) -> bytes:
    pieces = []
    while count and (piece := file.read(count)):
        pieces.append(piece)
        count -= len(piece)
    if count:
        raise OSError(errno.EIO, "a file that was just written is shorter than it should be")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
