"""The ledger's verbs on bases and patches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, update

from rompatch.errors import ConflictError, PatchNotFoundError, StoreError
from rompatch.patch import SHORT_ID, BaseRef, PatchHeader, canonical_json
from rompatch.store import schema
from rompatch.store.engine import Session
from rompatch.store.lookup import not_found, not_removed, records_of, subject_key
from rompatch.store.members import batches, stacks_holding
from rompatch.store.records import BaseRecord, PatchRecord, base_from, patch_from

REREGISTERED = "re-registered by fsck"
"""The message of a row that ``fsck --repair`` made from a patch file alone."""


def now() -> str:
    """This instant as the ledger writes it: UTC, ISO 8601, microseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def base_id(base: BaseRef) -> str:
    """64 hex digits over what identifies a base by content; its source's name is for people and stays out."""
    content = {name: value for name, value in vars(base).items() if name != "source"}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


class PatchVerbs:
    """Verbs on bases and patches; part of :class:`~rompatch.store.ledger.Ledger`."""

    session: Session

    def add_base(self, base: BaseRef, settings: Mapping[str, Any] | None = None) -> BaseRecord:
        """Remember *base*; one that is known is returned as it is. Writes."""
        table = schema.bases
        with self.session.writing() as connection:
            found = select(table).where(table.c.id == base_id(base))
            if connection.execute(found).first() is None:
                row = vars(base) | {
                    "id": base_id(base),
                    "settings": canonical_json(dict(settings or {})),
                    "first_seen": now(),
                }
                connection.execute(insert(table).values(row))
            return base_from(connection.execute(found).mappings().one())

    def bases(self) -> tuple[BaseRecord, ...]:
        """Every base, first seen first. Reads only."""
        with self.session.reading() as connection:
            rows = connection.execute(select(schema.bases).order_by(schema.bases.c.first_seen, schema.bases.c.id))
            return tuple(base_from(row) for row in rows.mappings())

    def add_patch(
        self,
        header: PatchHeader,
        *,
        patch_id: str,
        file_size: int,
        measurements: Mapping[str, Any] | None = None,
        author: str | None = None,
        message: str | None = None,
        source: str | None = None,
        expires_at: str | None = None,
        created_at: str | None = None,
        key_sketches: Sequence[bytes | None] = (),
    ) -> PatchRecord:
        """Record a patch whose file is in place already. Writes.

        Args:
            header: its header.
            patch_id: its full id.
            file_size: bytes.
            measurements: what was measured while it was computed.
            author, message: for the log.
            source: where the fact comes from, an address or words.
            expires_at: the day (ISO 8601) from which on the fact may no longer hold.
            created_at: when it was made, if that was elsewhere; what lies in the future is taken for now.
            key_sketches: one for each site, in their order, of the mean key there.

        A patch that is known keeps its record, which takes measurements, author, ... where it has none (``fsck`` may
        have come between a patch's file and its row). One that was removed comes back with the new details.
        """
        table = schema.patches
        with self.session.writing() as connection:
            known = connection.execute(select(table).where(table.c.id == patch_id)).mappings().first()
            details = {
                "author": author,
                "message": message,
                "source": source,
                "expires_at": expires_at,
                "measurements": canonical_json(dict(measurements or {})),
            }
            if known is not None and known["removed_at"] is None:
                vacant = [name for name in details if known[name] in (None, "{}", REREGISTERED)]
                fill = {name: details[name] for name in vacant if details[name] is not None}
                if fill:
                    connection.execute(update(table).where(table.c.id == patch_id).values(fill))
                self.fill_key_sketches({patch_id: key_sketches})
                return self.patch(patch_id)
            row = {
                "base_id": self.add_base(header.base).id,
                **_request_columns(header),
                "method": header.method,
                "subject_key": subject_key(header.subject),
                "header": canonical_json(header.to_json()),
                "file_size": file_size,
                "created_at": min(created_at or now(), now()),
                "removed_at": None,
                **details,
            }
            if known is not None:
                connection.execute(update(table).where(table.c.id == patch_id).values(row))
            else:
                connection.execute(insert(table).values(row | {"id": patch_id}))
                connection.execute(insert(schema.sites), _site_rows(header, patch_id))
            self.fill_key_sketches({patch_id: key_sketches})
            return patch_from(connection.execute(select(table).where(table.c.id == patch_id)).mappings().one())

    def annotate_patches(
        self, patch_ids: Iterable[str], *, source: str | None = None, expires_at: str | None = None
    ) -> None:
        """Say where the facts of patches come from and when they expire; None leaves what is there. Writes."""
        table = schema.patches
        values = {"source": source, "expires_at": expires_at}
        values = {name: value for name, value in values.items() if value is not None}
        with self.session.writing() as connection:
            for some in batches(patch_ids) if values else ():
                connection.execute(update(table).where(table.c.id.in_(some)).values(values))

    def key_sketches(self, patch_ids: Iterable[str]) -> dict[str, tuple[bytes | None, ...]]:
        """For each of those patches the sketches of its sites, in their order; None where there is none. Reads only."""
        table = schema.sites
        found: dict[str, list[bytes | None]] = {}
        with self.session.reading() as connection:
            for some in batches(patch_ids):
                query = select(table.c.patch_id, table.c.key_sketch).where(table.c.patch_id.in_(some))
                for patch_id, sketch in connection.execute(query.order_by(table.c.patch_id, table.c.n)):
                    found.setdefault(patch_id, []).append(sketch)
        return {patch_id: tuple(sketches) for patch_id, sketches in found.items()}

    def fill_key_sketches(self, sketches: Mapping[str, Sequence[bytes | None]]) -> int:
        """Give sites without a sketch theirs: for each patch one a site, in their order. Writes; how many."""
        table = schema.sites
        filled = 0
        with self.session.writing() as connection:
            for patch_id, of_sites in sketches.items():
                for index, sketch in enumerate(of_sites):
                    here = (table.c.patch_id == patch_id) & (table.c.n == index) & table.c.key_sketch.is_(None)
                    if sketch is not None:
                        filled += connection.execute(update(table).where(here).values(key_sketch=sketch)).rowcount
        return filled

    def patch(self, patch_id: str) -> PatchRecord:
        """The patch of that full id. Reads only.

        Raises:
            PatchNotFoundError: unknown, or removed (the message says when).
        """
        table = schema.patches
        with self.session.reading() as connection:
            row = connection.execute(select(table).where(table.c.id == patch_id)).mappings().first()
            if row is None:
                raise not_found(connection, patch_id)
        if row["removed_at"] is not None:
            raise PatchNotFoundError(
                f"Patch {patch_id[:SHORT_ID]} was removed on {row['removed_at'][:10]}.",
                next_step="Compute it anew with `rompatch create`; the same inputs give the same id.",
                patch_id=patch_id,
            )
        return patch_from(row)

    def records(self, patch_ids: Iterable[str]) -> tuple[PatchRecord, ...]:
        """The records of those full ids, by id, removed ones among them; unknown ids are left out. Reads only."""
        with self.session.reading() as connection:
            return records_of(connection, patch_ids)

    def patches(
        self,
        subject: str | None = None,
        *,
        base_id: str | None = None,
        expired_on: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> tuple[PatchRecord, ...]:
        """Patches that are not removed, newest first; of one subject, of one base, or those that have expired on the
        day *expired_on* (ISO 8601), if asked. Reads only."""
        table = schema.patches
        few = subject is not None or expired_on is not None
        wanted: list[ColumnElement[bool]] = [not_removed() if few else table.c.removed_at.is_(None)]
        if subject is not None:
            wanted.append(table.c.subject_key == subject_key(subject))
        if base_id is not None:
            wanted.append(table.c.base_id == base_id)
        if expired_on is not None:
            wanted.append(table.c.expires_at <= expired_on)
        query = select(table).where(*wanted).order_by(table.c.created_at.desc(), table.c.id)
        with self.session.reading() as connection:
            rows = connection.execute(query.limit(limit).offset(offset)).mappings()
            return tuple(patch_from(row) for row in rows)

    def count_patches(self) -> int:
        """How many patches there are, removed ones aside. Reads only."""
        table = schema.patches
        with self.session.reading() as connection:
            return int(connection.scalar(select(func.count()).where(table.c.removed_at.is_(None))) or 0)

    def remove_patch(self, patch_id: str) -> PatchRecord:
        """Forget a patch. Writes. Its row becomes a tombstone, because older revisions and verifications name it.

        Remove the file *after* this: a crash in between leaves a file that ``fsck`` names, never a row without one.

        Raises:
            PatchNotFoundError: unknown or removed already.
            ConflictError: it is a member of a stack's current revision.
        """
        with self.session.writing() as connection:
            record = self.patch(patch_id)
            if names := stacks_holding(connection, patch_id):
                raise ConflictError(
                    f"Patch {record.label} cannot be removed: it is active in stack {', '.join(map(repr, names))}.",
                    next_step=f"Take it off first: `rompatch revert {record.short_id}`.",
                    patch_id=patch_id,
                    stacks=names,
                )
            table = schema.patches
            connection.execute(update(table).where(table.c.id == patch_id).values(removed_at=now()))
        return record

    def knows(self, patch_id: str) -> bool:
        """Whether there is a patch of that full id that is not removed. Reads only."""
        table = schema.patches
        query = select(table.c.id).where(table.c.id == patch_id, table.c.removed_at.is_(None))
        with self.session.reading() as connection:
            return connection.scalar(query) is not None

    def site_hashes(self, base_id: str) -> Mapping[str, str]:
        """Parameter name to the sha256 of the base's tensor, as the patches of that base know it. Reads only."""
        sites, patches = schema.sites, schema.patches
        query = (
            select(sites.c.parameter, sites.c.tensor_sha256)
            .join(patches, patches.c.id == sites.c.patch_id)
            .where(patches.c.base_id == base_id, patches.c.removed_at.is_(None))
            .distinct()
        )
        with self.session.reading() as connection:
            return {row.parameter: row.tensor_sha256 for row in connection.execute(query)}

    def tombstones(self) -> frozenset[str]:
        """Ids of removed patches. Reads only."""
        with self.session.reading() as connection:
            return frozenset(
                connection.scalars(select(schema.patches.c.id).where(schema.patches.c.removed_at.is_not(None)))
            )


def _request_columns(header: PatchHeader) -> dict[str, Any]:
    """What is searched by. A patch with a title is found by it; no template or object of a fact equals an empty one."""
    if header.request is not None:
        return header.request.to_json()
    return {"subject": header.subject, "template": "", "target_new": "", "target_true": None, "relation": None}


def _site_rows(header: PatchHeader, patch_id: str) -> Sequence[dict[str, Any]]:
    if not header.sites:
        raise StoreError(f"Patch {patch_id[:SHORT_ID]} has no sites.")
    return [
        {
            "patch_id": patch_id,
            "n": index,
            "layer": site.layer,
            "parameter": site.parameter,
            "shape": f"{site.d_out}x{site.d_in}",
            "tensor_sha256": site.sha256,
        }
        for index, site in enumerate(header.sites)
    ]
