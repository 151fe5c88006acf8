"""The reading half of a bake: what was written is compared with what should be there, before it gets its name."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rompatch.apply.bake_plan import Plan, files_in
from rompatch.apply.baked import Rewritten
from rompatch.apply.stored import StoredTensor
from rompatch.folders import sync_tree


def from_the_disk(work: Path) -> None:
    """Make the system forget what it knows of the files in *work*: what is read next comes from the disk."""
    sync_tree(work)
    if hasattr(os, "posix_fadvise"):
        for name in files_in(work):
            with (work / name).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_back(
    base_folder: Path,
    work: Path,
    plan: Plan,
    base: Mapping[str, StoredTensor],
    written: Mapping[str, StoredTensor],
    rewritten: Sequence[Rewritten],
    *,
    every: bool,
) -> dict[str, str]:
    """Compare what was written with what should be there, and return sha256 of the base's tensors by name.

    Args:
        base, written: the tensors of the base and of the output, by name in the checkpoint.
        every: compare all tensors by hash and all files byte for byte, not just the tensors that were rewritten and
            the files' sizes. Only what was compared is in the result.

    Raises:
        OSError: something reads back otherwise than it was written.
        ModelError: a file ends too early.
    """
    for source, name in plan.files:
        if (base_folder / source).stat().st_size != (work / name).stat().st_size:
            raise OSError(errno.EIO, f"{name} was not copied whole; did the base change meanwhile?")
    if {name: (one.dtype, one.shape) for name, one in base.items()} != {
        name: (one.dtype, one.shape) for name, one in written.items()
    }:
        raise OSError(errno.EIO, "the new checkpoint lists other tensors than the base")
    after = {one.stored_as: one.sha256_after for one in rewritten}
    hashes = {one.stored_as: one.sha256_before for one in rewritten}
    if every:
        hashes |= {name: tensor.sha256(base_folder) for name, tensor in base.items() if name not in hashes}
        _compare_files(base_folder, work, plan)
    for name, sha256 in hashes.items():
        if written[name].sha256(work) != after.get(name, sha256):
            raise OSError(errno.EIO, f"{name} reads back otherwise than it was written")
    return hashes


def _compare_files(base_folder: Path, work: Path, plan: Plan) -> None:
    """Every file that holds no weights."""
    for source, name in plan.files:
        if source in plan.layout.shards:
            continue
        with (base_folder / source).open("rb") as one, (work / name).open("rb") as other:
            while piece := one.read(1 << 22):
                if piece != other.read(1 << 22):
                    raise OSError(errno.EIO, f"{name} reads back otherwise than it was written")
