"""Bundles for tests: fixed ones, and the parts to spoil them with."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

from tiny_patches import tiny_adapter, tiny_base, tiny_patch

from rompatch import patchfile
from rompatch.bundle import (
    BundledPatch,
    BundledRevision,
    BundledRun,
    Manifest,
    entry_refs,
    runs_entry,
    to_bytes,
)
from rompatch.bundle.limits import patch_entry
from rompatch.patch import Patch, canonical_json

AT = "2026-01-31T12:00:00.000000+00:00"


def bundled(patch: Patch) -> BundledPatch:
    return BundledPatch(patch.id, patch.header.label, AT, "ann", "because", None, None, {"seconds": {"all": 1.5}})


def tiny_run(patch: Patch) -> BundledRun:
    return BundledRun(patch.id, "suite", "atlas", AT, {}, {"torch": "2"}, [], (("post", "s", 0.5, 3),))


def parts(*patches: Patch, stack: str = "facts", runs: bool = True) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the contents of a bundle of *patches*, its history one empty revision and one with all."""
    members = sorted(patches or (tiny_patch(), tiny_adapter()), key=lambda patch: patch.id)
    contents = {patch_entry(patch.id): patchfile.to_bytes(patch) for patch in members}
    contents |= runs_entry([tiny_run(members[0])] if runs else [])
    ids = tuple(patch.id for patch in members)
    manifest = Manifest(
        stack=stack,
        revision=1,
        base=tiny_base(),
        patches=tuple(map(bundled, members)),
        mentioned={},
        revisions=(
            BundledRevision(0, None, "create", AT, "ann", None, None, ()),
            BundledRevision(1, 0, "apply", AT, "ann", "both", "a ticket", ids),
        ),
        entries=entry_refs(contents),
        rompatch="0.1.0",
    )
    return manifest, contents


def tiny_bundle(*patches: Patch, **about: Any) -> bytes:
    manifest, contents = parts(*patches, **about)
    return to_bytes(manifest, contents)


def rezipped(data: bytes, change: Callable[[zipfile.ZipInfo, bytes], tuple[zipfile.ZipInfo, bytes] | None]) -> bytes:
    """The same zip written anew by the standard library, each entry changed or (None) left out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            changed = change(info, old.read(info))
            if changed is not None:
                new.writestr(*changed)
    return out.getvalue()


def with_manifest(change: Callable[[dict[str, Any]], Any], spell: Callable[[Any], str] = canonical_json) -> bytes:
    """A tiny bundle whose manifest says something else, its checksums made right again."""
    manifest = parts()[0].to_json()
    change(manifest)

    def changed(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        return info, spell(manifest).encode() if info.filename == "manifest.json" else data

    return rezipped(tiny_bundle(), changed)
