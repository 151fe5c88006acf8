"""What a bundle says about itself: one canonical JSON text, from which every other byte of the bundle is proven."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rompatch.bundle.limits import MANIFEST, MAX_PATCHES, MAX_REVISIONS, RUNS, is_known, patch_entry, patch_of_entry
from rompatch.patch import BaseRef, canonical_json
from rompatch.patchfile.checks import DamageError, check_types, check_values, parse_json, require

BUNDLE_VERSION = 1
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", re.ASCII)
"""An instant as the ledger writes it."""

_HEX64 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 100


@dataclass(frozen=True)
class BundledPatch:
    """A member of the stack, as its ledger knew it; the patch itself is in an entry of its own."""

    id: str
    label: str
    created_at: str
    author: str | None
    message: str | None
    source: str | None
    expires_at: str | None
    measurements: Mapping[str, Any]


@dataclass(frozen=True)
class BundledRevision:
    """One revision of the stack's history. ``members`` are ids; those that left since have no file in the bundle."""

    number: int
    parent: int | None
    action: str
    created_at: str
    author: str | None
    message: str | None
    reason: str | None
    members: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EntryRef:
    """One entry by name, with its size in bytes and the sha256 of its content."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The stack, its base, its members and its history, and the hash of every other entry.

    Args:
        stack: the stack's name.
        revision: the number of the revision that was exported: the last of ``revisions``.
        base: the base that every member is for.
        patches: the members of that revision, by id.
        mentioned: labels of the patches that only older revisions name, by id.
        revisions: the history, oldest first.
        entries: every entry but the manifest and its signature, by name.
        rompatch: version of the program that wrote it.
    """

    stack: str
    revision: int
    base: BaseRef
    patches: tuple[BundledPatch, ...]
    mentioned: Mapping[str, str]
    revisions: tuple[BundledRevision, ...]
    entries: tuple[EntryRef, ...]
    rompatch: str
    format_version: int = BUNDLE_VERSION

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            **{name: getattr(self, name) for name in ("stack", "revision", "rompatch", "format_version")},
            "base": dict(vars(self.base)),
            "patches": [dict(vars(patch)) for patch in self.patches],
            "mentioned": dict(self.mentioned),
            "revisions": [vars(one) | {"members": list(one.members)} for one in self.revisions],
            "entries": [dict(vars(entry)) for entry in self.entries],
        }

    def to_bytes(self) -> bytes:
        """The entry ``manifest.json``.

        Raises:
            DamageError: it breaks the format, or is no plain JSON.
        """
        check(self)
        try:
            return canonical_json(self.to_json()).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise DamageError(f"its manifest is not plain JSON ({error})") from None


def parse(data: bytes) -> Manifest:
    """The manifest in *data*, every type and every relation in it checked, in canonical spelling.

    Raises:
        DamageError: anything is wrong with it.
    """
    try:
        values = parse_json(data.decode(), f"its {MANIFEST}")
    except UnicodeDecodeError:
        raise DamageError(f"its {MANIFEST} is not UTF-8") from None
    version = values.get("format_version")
    if type(version) is int and version > BUNDLE_VERSION:
        raise DamageError(
            f"its format version is {version}, newer than this rompatch reads",
            expected=f"at most {BUNDLE_VERSION}",
            next_step="Upgrade rompatch: `pip install --upgrade rompatch`.",
        )
    check_values(values)
    try:
        revisions = [one | {"members": tuple(one["members"])} for one in values["revisions"]]
        manifest = Manifest(
            **values
            | {
                "base": BaseRef(**values["base"]),
                "patches": tuple(BundledPatch(**patch) for patch in values["patches"]),
                "revisions": tuple(BundledRevision(**one) for one in revisions),
                "entries": tuple(EntryRef(**entry) for entry in values["entries"]),
            }
        )
    except KeyError as missing:
        raise DamageError(f"its {MANIFEST} has no field {missing}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise DamageError(f"its {MANIFEST} does not describe a bundle ({error})") from None
    require(manifest.to_bytes() == data, f"its {MANIFEST} is not in canonical spelling")
    return manifest


def check(manifest: Manifest) -> None:
    """The types and relations that the dataclasses do not hold themselves."""
    check_types(manifest, {"stack": str, "revision": int, "rompatch": str, "format_version": int}, "manifest")
    require(manifest.format_version == BUNDLE_VERSION, "its format version is unknown", BUNDLE_VERSION)
    check_name(manifest.stack)
    base = dict.fromkeys(("source", "model_type", "config_hash", "tokenizer_hash", "dtype"), str)
    check_types(manifest.base, base, "base")
    _check_patches(manifest)
    _check_revisions(manifest)
    _check_entries(manifest)


def check_name(name: str) -> None:
    """Whether a stack may be called so, wherever the bundle comes from: short, printable, no white space around it."""
    fits = 1 <= len(name) <= _LONGEST_NAME and name == name.strip() and name.isprintable()
    require(fits, "its stack's name is no name", f"1 to {_LONGEST_NAME} printable characters", repr(name)[:120])


def _check_patches(manifest: Manifest) -> None:
    require(1 <= len(manifest.patches) <= MAX_PATCHES, "its number of patches is absurd", f"1 to {MAX_PATCHES}")
    for patch in manifest.patches:
        check_types(patch, {"id": str, "label": str, "created_at": str}, "a patch")
        _check_about(patch, ("author", "message", "source", "expires_at"))
        require(isinstance(patch.measurements, Mapping), "the measurements of a patch are no JSON object")
    _check_ids([patch.id for patch in manifest.patches])
    require(isinstance(manifest.mentioned, Mapping), "its mentioned patches are no JSON object")
    _check_ids(sorted(manifest.mentioned))
    require(all(type(label) is str for label in manifest.mentioned.values()), "the label of a patch is not text")


def _check_revisions(manifest: Manifest) -> None:
    known = {patch.id for patch in manifest.patches} | manifest.mentioned.keys()
    numbers = []
    require(1 <= len(manifest.revisions) <= MAX_REVISIONS, "its number of revisions is absurd", f"1 to {MAX_REVISIONS}")
    for one in manifest.revisions:
        check_types(one, {"number": int, "action": str, "created_at": str, "members": tuple}, "a revision")
        _check_about(one, ("author", "message", "reason"))
        require(type(one.parent) in (int, type(None)), "the parent of a revision is no number")
        require(isinstance(one.details, Mapping), "the details of a revision are no JSON object")
        require(one.number >= 0 and (one.parent is None or 0 <= one.parent < one.number), "a revision is misnumbered")
        _check_ids(one.members)
        require(known.issuperset(one.members), "a revision has a member that the manifest does not name")
        numbers.append(one.number)
    require(numbers == sorted(set(numbers)), "its revisions are not in order")
    last = manifest.revisions[-1]
    same = last.number == manifest.revision and last.members == tuple(patch.id for patch in manifest.patches)
    require(same, "its last revision is not the one that it holds the patches of")


def _check_entries(manifest: Manifest) -> None:
    names = []
    for entry in manifest.entries:
        check_types(entry, {"name": str, "size": int, "sha256": str}, "an entry")
        require(entry.size >= 0 and bool(_HEX64.fullmatch(entry.sha256)), "size or hash of an entry is impossible")
        listable = is_known(entry.name) and not entry.name.startswith(MANIFEST)
        require(listable, f"its manifest lists {entry.name[:100]!r}, which is no entry of a bundle")
        names.append(entry.name)
    require(names == sorted(set(names)), "the entries of its manifest are not in order")
    files = [name for name in names if patch_of_entry(name) is not None]
    require(files == [patch_entry(patch.id) for patch in manifest.patches], "its files are not those of its patches")
    require(set(names) - set(files) <= {RUNS}, "its manifest lists an unknown entry")


def _check_about(record: object, names: Iterable[str]) -> None:
    for name in names:
        require(type(getattr(record, name)) in (str, type(None)), f"{name} of a record is neither text nor null")
    time = str(vars(record)["created_at"])
    require(_is_time(time), "a time in its manifest is no time", "2026-01-31T12:00:00.000000+00:00", time[:60])


def _is_time(text: str) -> bool:
    if not TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:  # no such day or hour
        return False
    return True


def _check_ids(ids: Iterable[Any]) -> None:
    found = list(ids)
    require(all(type(one) is str and _HEX64.fullmatch(one) for one in found), "an id is not 64 lower-case hex digits")
    require(found == sorted(set(found)), "its ids are not in order, each once")
