"""What a bake is told, and what it says it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rompatch.apply.rounding import Probe, Rounding
from rompatch.apply.solve import SiteUpdate
from rompatch.patch import SiteRef

CARD = "README.md"
MANIFEST = "rompatch_manifest.json"
BASE_MANIFEST = "rompatch_manifest.base.json"
"""What the manifest of a base that was itself baked is called in the output."""


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens to one tensor.

    Args:
        site: where it is, and what it must be in the base.
        update: what is added to it.
        probes: patches whose keys tell how much of the update the cast leaves.
    """

    site: SiteRef
    update: SiteUpdate
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class Rewritten:
    """One tensor that differs from the base: its names in the model and in the checkpoint, its place, both hashes."""

    parameter: str
    stored_as: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    sha256_before: str
    sha256_after: str
    rounding: tuple[Rounding, ...] = ()


@dataclass(frozen=True)
class Written:
    """The weights as they were written, from which the card and the manifest are made.

    Args:
        rewritten: the tensors that differ from the base, in order of name.
        base_tensors: name in the checkpoint to sha256 of the base's tensor: of those, or of all, if all were verified.
    """

    rewritten: tuple[Rewritten, ...]
    base_tensors: Mapping[str, str]


@dataclass(frozen=True)
class BakeOptions:
    """How to bake.

    Args:
        hard_link: untouched files become further names of the base's own files where the file system can.
        verify_all: read everything back from the disk and compare it, tensor by tensor, not just what was rewritten.
    """

    hard_link: bool = False
    verify_all: bool = False


@dataclass(frozen=True)
class BakeReport:
    """What a bake wrote.

    Args:
        folder: the new checkpoint.
        files: how many files are in it.
        size: bytes in all of them.
        linked: how many of the files are further names of the base's.
        rewritten: the tensors that differ from the base, in order of name.
        left_out: files of the base that hold its weights in another form, relative to it.
        verified: tensors that were read back and compared.
    """

    folder: Path
    files: int
    size: int
    linked: int
    rewritten: tuple[Rewritten, ...]
    left_out: tuple[str, ...]
    verified: int
