"""A stack as one file: its patches, their history, their scores (docs/bundle-format.md). Nothing here knows a store.

Reading trusts nothing. Entries are read by the exact names that the format allows, from the offsets that its layout
gives, and nothing is ever extracted to a path; every entry must have the hash that the manifest lists, every patch file
passes the checks of :mod:`rompatch.patchfile` and has the id that its entry is named by.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rompatch import patchfile
from rompatch.bundle import manifest as manifests
from rompatch.bundle import runs as run_lists
from rompatch.bundle.layout import Entry, central_directory, local_header
from rompatch.bundle.limits import MANIFEST, MAX_BUNDLE_BYTES, RUNS, SIGNATURE, naming, patch_entry
from rompatch.bundle.manifest import BundledPatch, BundledRevision, EntryRef, Manifest
from rompatch.bundle.reading import Container, opened, sha256
from rompatch.bundle.runs import BundledRun
from rompatch.errors import PatchFileError
from rompatch.patch import Patch
from rompatch.patchfile.checks import DamageError, require

__all__ = [
    "Bundle",
    "BundledPatch",
    "BundledRevision",
    "BundledRun",
    "EntryRef",
    "Manifest",
    "entry_refs",
    "open_bundle",
    "runs_entry",
    "to_bytes",
]


class Bundle:
    """A bundle that is open for reading: manifest, runs and signature are checked, patches when they are read."""

    def __init__(self, container: Container, name: str) -> None:
        self._container, self._name = container, name
        self.manifest_bytes = container.read(MANIFEST)
        self.manifest = manifests.parse(self.manifest_bytes)
        listed = {entry.name: entry.size for entry in self.manifest.entries}
        found = {name: size for name, size in container.sizes.items() if not name.startswith(MANIFEST)}
        require(listed == found, "its entries are not those that its manifest lists, with their sizes")
        self.signature = container.read(SIGNATURE) if SIGNATURE in container.sizes else None
        members = [patch.id for patch in self.manifest.patches]
        self.runs = run_lists.parse(self._checked(RUNS), members) if RUNS in listed else ()

    @property
    def sha256(self) -> str:
        """The hash of the manifest, which names the bundle's content: equal stacks with equal history have one."""
        return sha256(self.manifest_bytes)

    def patches(self) -> Iterator[Patch]:
        """Every patch, one at a time, in order of id.

        Raises:
            BundleError: a file is not the one that the manifest lists, no patch file, another patch than its name
                says, or for another base than the bundle's.
        """
        for listed in self.manifest.patches:
            with naming(self._name):
                yield self._patch(listed.id)

    def check(self) -> None:
        """Read every patch. Raises what :meth:`patches` raises."""
        for _ in self.patches():
            pass

    def _patch(self, patch_id: str) -> Patch:
        name = patch_entry(patch_id)
        try:
            patch = patchfile.from_bytes(self._checked(name), name)
        except PatchFileError as error:
            raise DamageError(f"one of its patches is none ({error.message})", error.expected, error.found) from None
        require(patch.id == patch_id, f"{name} holds another patch than its name says", patch_id, patch.id)
        base, wanted = (vars(ref) | {"source": ""} for ref in (patch.header.base, self.manifest.base))
        require(base == wanted, f"its patch {patch.short_id} was computed for another base than the bundle's")
        return patch

    def _checked(self, name: str) -> bytes:
        data = self._container.read(name)
        wanted = next(entry.sha256 for entry in self.manifest.entries if entry.name == name)
        require(
            sha256(data) == wanted, f"its entry {name} is not the one that its manifest lists", wanted, sha256(data)
        )
        return data


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """The bundle in the file at *path*.

    Raises:
        BundleError: missing, truncated, damaged, hostile or of a newer format.
    """
    with opened(path) as container:
        yield Bundle(container, str(path))


def entry_refs(contents: Mapping[str, bytes]) -> tuple[EntryRef, ...]:
    """What a manifest lists, for entries with these *contents*."""
    return tuple(EntryRef(name, len(data), sha256(data)) for name, data in sorted(contents.items()))


def to_bytes(manifest: Manifest, contents: Mapping[str, bytes], signature: bytes | None = None) -> bytes:
    """The file's bytes: a function of the content alone.

    Args:
        manifest: whose ``entries`` are those of :func:`entry_refs` for *contents*.
        contents: entry name to bytes: the patch files and, where there are runs, ``runs.json``.
        signature: of the manifest, where it is signed.

    Raises:
        BundleError: it breaks the format or a limit.
    """
    with naming("(not written)"):
        entries = {**contents, MANIFEST: manifest.to_bytes()}
        require(manifest.entries == entry_refs(contents), "its manifest lists other entries")
        if signature is not None:
            entries[SIGNATURE] = signature
        size = sum(len(data) for data in entries.values())
        require(size < MAX_BUNDLE_BYTES, "it is too large", f"less than {MAX_BUNDLE_BYTES} bytes", f"{size} bytes")
        ordered = sorted(entries.items())
        headers = [Entry(name, len(data), zlib.crc32(data)) for name, data in ordered]
        parts: list[bytes] = []
        for header, (_, data) in zip(headers, ordered, strict=True):
            parts += [local_header(header), data]
        return b"".join([*parts, central_directory(headers)])


def runs_entry(runs: Sequence[BundledRun]) -> dict[str, bytes]:
    """The entry for *runs*: none where there are none."""
    return {RUNS: run_lists.spell(runs)} if runs else {}
