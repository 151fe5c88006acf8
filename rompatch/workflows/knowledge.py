"""What a store's ledger knows that bears on a checkpoint: patches of the same base, and sets of them worth trying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rompatch.errors import SiteError
from rompatch.patch import Patch, SiteRef
from rompatch.store.records import PatchRecord
from rompatch.workflows.opened import OpenStore

if TYPE_CHECKING:
    from rompatch.apply.manifest import Claim
    from rompatch.apply.stored import StoredTensor

MOST_CANDIDATES = 1000
"""Patches at one site that are searched, the newest; those of the manifest and of stacks are among them anyway."""

MOST_REVISIONS = 100
"""Older revisions of each stack that are tried as they are."""

Known = tuple[str, frozenset[str]]
"""A set of patches and what it is known as."""


@dataclass(frozen=True)
class AuditedSite:
    """A tensor that patches of the ledger are for, and their records, in canonical order."""

    ref: SiteRef
    records: tuple[PatchRecord, ...]


class Knowledge:
    """What the ledger knows that bears on a base.

    Args:
        folder: the base's checkpoint.
        base: its tensors, by name.
        claim: what the manifest of the audited checkpoint says, if there is one.
    """

    def __init__(self, store: OpenStore, folder: Path, base: Mapping[str, StoredTensor], claim: Claim | None) -> None:
        self.store, self.folder, self.base, self.claim = store, folder, base, claim
        self.active = frozenset(record.id for record in store.active())
        self._patches: dict[str, Patch] = {}

    @cached_property
    def sites(self) -> Mapping[str, AuditedSite]:
        """Name in the checkpoint to the site; only patches that were computed for this very tensor."""
        wanted: dict[tuple[str, str], list[tuple[SiteRef, PatchRecord]]] = {}
        for record in self.store.patches():
            for site in record.header.sites:
                wanted.setdefault((site.parameter, site.sha256), []).append((site, record))
        hashes: dict[str, str] = {}
        found = {}
        for (parameter, sha256), members in wanted.items():
            name = self._name(parameter)
            if name is None:
                continue
            if name not in hashes:
                hashes[name] = self.base[name].sha256(self.folder)
            if hashes[name] == sha256:
                newest = [record for _, record in members]
                kept = [one for one in newest if one.id in self.known_ids] + newest[:MOST_CANDIDATES]
                records = sorted({record.id: record for record in kept}.values(), key=lambda record: record.id)
                found[name] = AuditedSite(members[0][0], tuple(records))
        return found

    @cached_property
    def candidates(self) -> Mapping[str, PatchRecord]:
        """All patches that are for this base, by id."""
        return {record.id: record for site in self.sites.values() for record in site.records}

    @cached_property
    def known(self) -> tuple[Known, ...]:
        """Sets worth trying as they are: the manifest's, the active stack, other stacks, older revisions."""
        sets: list[Known] = [] if self.claim is None else [("manifest", frozenset(self.claim.patches))]
        sets.append(("active stack", self.active))
        for stack in self.store.ledger.stacks():
            sets += [
                (f"revision {revision.number} of {stack.name}", frozenset(revision.members))
                for revision in self.store.ledger.revisions(stack, limit=MOST_REVISIONS)
            ]
        return tuple(sets)

    @cached_property
    def known_ids(self) -> frozenset[str]:
        """Every patch in those."""
        return frozenset().union(*(members for _, members in self.known))

    def patch(self, record: PatchRecord) -> Patch:
        """With its numbers, read once."""
        if record.id not in self._patches:
            self._patches[record.id] = self.store.blobs.get(record.id)
        return self._patches[record.id]

    def _name(self, parameter: str) -> str | None:
        from rompatch.apply.checkpoint import match_name

        try:
            return match_name(parameter, self.base)
        except SiteError:
            return None
