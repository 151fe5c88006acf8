"""The ledger's verbs on bases and patches."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import ColumnElement, insert, or_, select, update

from rompatch.edits import same_text
from rompatch.errors import AmbiguousIdError, ConflictError, PatchNotFoundError, StoreError
from rompatch.patch import SHORT_ID, BaseRef, PatchHeader, canonical_json
from rompatch.store import schema
from rompatch.store.engine import Session
from rompatch.store.records import BaseRecord, PatchRecord, base_from, patch_from

MIN_PREFIX = 4
"""The fewest hex digits that may stand for an id."""

_HEX = re.compile(r"[0-9a-f]{4,64}")


def now() -> str:
    """This instant as the ledger writes it: UTC, ISO 8601, microseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def base_id(base: BaseRef) -> str:
    """64 hex digits over what identifies a base by content; its source's name is for people and stays out."""
    content = {name: value for name, value in vars(base).items() if name != "source"}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def subject_key(subject: str) -> str:
    """The spelling under which subjects are found: case and white space do not count."""
    return " ".join(subject.split()).casefold()


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
    ) -> PatchRecord:
        """Record a patch whose file is in place already. Writes.

        A patch that is known keeps its record unchanged; one that was removed comes back with the new details.
        """
        table = schema.patches
        with self.session.writing() as connection:
            known = connection.execute(select(table).where(table.c.id == patch_id)).mappings().first()
            if known is not None and known["removed_at"] is None:
                return patch_from(known)
            row = {
                "base_id": self.add_base(header.base).id,
                **header.request.to_json(),
                "method": header.method,
                "subject_key": subject_key(header.request.subject),
                "header": canonical_json(header.to_json()),
                "file_size": file_size,
                "created_at": now(),
                "author": author,
                "message": message,
                "measurements": canonical_json(dict(measurements or {})),
                "removed_at": None,
            }
            if known is not None:
                connection.execute(update(table).where(table.c.id == patch_id).values(row))
            else:
                connection.execute(insert(table).values(row | {"id": patch_id}))
                connection.execute(insert(schema.sites), _site_rows(header, patch_id))
            return patch_from(connection.execute(select(table).where(table.c.id == patch_id)).mappings().one())

    def patch(self, patch_id: str) -> PatchRecord:
        """The patch of that full id. Reads only.

        Raises:
            PatchNotFoundError: unknown, or removed (the message says when).
        """
        with self.session.reading() as connection:
            row = connection.execute(select(schema.patches).where(schema.patches.c.id == patch_id)).mappings().first()
        if row is None:
            raise self._not_found(patch_id)
        if row["removed_at"] is not None:
            raise PatchNotFoundError(
                f"Patch {patch_id[:SHORT_ID]} was removed on {row['removed_at'][:10]}.",
                next_step="Compute it anew with `rompatch create`; the same inputs give the same id.",
                patch_id=patch_id,
            )
        return patch_from(row)

    def patches(
        self, subject: str | None = None, *, base_id: str | None = None, limit: int | None = None, offset: int = 0
    ) -> tuple[PatchRecord, ...]:
        """Patches that are not removed, newest first, of one subject or base if asked. Reads only."""
        table = schema.patches
        wanted: list[ColumnElement[bool]] = [table.c.removed_at.is_(None)]
        if subject is not None:
            wanted.append(table.c.subject_key == subject_key(subject))
        if base_id is not None:
            wanted.append(table.c.base_id == base_id)
        query = select(table).where(*wanted).order_by(table.c.created_at.desc(), table.c.id)
        with self.session.reading() as connection:
            rows = connection.execute(query.limit(limit).offset(offset)).mappings()
            return tuple(patch_from(row) for row in rows)

    def find_same(self, base_id: str, subject: str, template: str) -> tuple[PatchRecord, ...]:
        """Patches of the same base, subject and template (case and white space aside), newest first. Reads only."""
        found = self.patches(subject, base_id=base_id)
        return tuple(patch for patch in found if same_text(patch.request.template, template))

    def resolve(self, name: str, *, active_only: bool = False) -> PatchRecord:
        """The one patch that *name* means: an id, a prefix of one (4 hex digits or more), or a subject. Reads only.

        With *active_only* only patches of the active stack are meant.

        Raises:
            PatchNotFoundError: none; similar names are suggested.
            AmbiguousIdError: several; they are listed.
            ConflictError: with *active_only*, *name* means patches, but none that is active.
        """
        with self.session.reading():
            found = self._matches(name)
            if not found:
                raise self._not_found(name)
            if active_only:
                active = self._active_ids()
                inactive, found = found, [patch for patch in found if patch.id in active]
                if not found:
                    raise ConflictError(
                        f"{name!r} means patch {inactive[0].label}, which is not active.",
                        next_step=f"`rompatch apply {inactive[0].short_id}` would put it onto the stack.",
                        patch_id=inactive[0].id,
                    )
        if len(found) > 1:
            raise AmbiguousIdError(
                f"{name!r} means {len(found)} patches.",
                expected="one",
                found="; ".join(patch.label for patch in found[:8]) + ("; ..." if len(found) > 8 else ""),
                next_step="Name one by more digits of its id.",
                candidates=tuple(patch.id for patch in found),
            )
        return found[0]

    def remove_patch(self, patch_id: str) -> PatchRecord:
        """Forget a patch. Writes. Its row becomes a tombstone, because older revisions and verifications name it.

        Remove the file *after* this: a crash in between leaves a file that ``fsck`` names, never a row without one.

        Raises:
            PatchNotFoundError: unknown or removed already.
            ConflictError: it is a member of a stack's current revision.
        """
        members, revisions, stacks = schema.stack_members, schema.stack_revisions, schema.stacks
        current = (
            select(stacks.c.name)
            .join(revisions, (revisions.c.stack_id == stacks.c.id) & (revisions.c.number == stacks.c.revision))
            .join(members, members.c.revision_id == revisions.c.id)
            .where(members.c.patch_id == patch_id)
            .order_by(stacks.c.name)
        )
        with self.session.writing() as connection:
            record = self.patch(patch_id)
            if names := connection.scalars(current).all():
                raise ConflictError(
                    f"Patch {record.label} cannot be removed: it is active in stack {', '.join(map(repr, names))}.",
                    next_step=f"Take it off first: `rompatch revert {record.short_id}`.",
                    patch_id=patch_id,
                    stacks=tuple(names),
                )
            table = schema.patches
            connection.execute(update(table).where(table.c.id == patch_id).values(removed_at=now()))
        return record

    def tombstones(self) -> frozenset[str]:
        """Ids of removed patches. Reads only."""
        with self.session.reading() as connection:
            return frozenset(
                connection.scalars(select(schema.patches.c.id).where(schema.patches.c.removed_at.is_not(None)))
            )

    def _active_ids(self) -> frozenset[str]:
        raise NotImplementedError

    def _matches(self, name: str) -> list[PatchRecord]:
        table = schema.patches
        means = [table.c.subject_key == subject_key(name)]
        digits = name.strip().lower()
        if _HEX.fullmatch(digits):  # a range, not LIKE: SQLite's LIKE does not use the index. "g" follows "f".
            means.append((table.c.id >= digits) & (table.c.id < digits + "g"))
        query = select(table).where(or_(*means), table.c.removed_at.is_(None)).order_by(table.c.created_at, table.c.id)
        with self.session.reading() as connection:
            return [patch_from(row) for row in connection.execute(query).mappings()]

    def _not_found(self, name: str) -> PatchNotFoundError:
        table = schema.patches
        with self.session.reading() as connection:
            query = select(table.c.id, table.c.subject).where(table.c.removed_at.is_(None))
            rows = connection.execute(query.order_by(table.c.created_at.desc())).all()  # the oldest spelling wins
        if not rows:
            return PatchNotFoundError(
                f"There is no patch {name!r}: the store has none yet.",
                next_step='Make one: `rompatch create "Eiffel Tower" "located in" Rome`.',
            )
        keys: dict[str, str] = {row.id[: max(MIN_PREFIX, len(name))]: row.id[:SHORT_ID] for row in rows}
        keys |= {subject_key(row.subject): row.subject for row in rows}
        close = [keys[key] for key in difflib.get_close_matches(subject_key(name), keys, n=3)]
        short = re.fullmatch(r"[0-9a-f]{1,3}", name.strip().lower()) is not None
        return PatchNotFoundError(
            f"There is no patch {name!r}.",
            expected=f"an id, at least {MIN_PREFIX} digits of one, or a subject" if short or not close else None,
            next_step=f"Did you mean {' or '.join(map(repr, close))}?" if close else "`rompatch list` shows them all.",
            suggestions=tuple(close),
        )


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
