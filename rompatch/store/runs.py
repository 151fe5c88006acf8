"""The ledger's verbs on verifications and settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import delete, insert, select

from rompatch.errors import PatchNotFoundError, StoreError
from rompatch.patch import SHORT_ID, canonical_json
from rompatch.store import schema
from rompatch.store.engine import Session, insert_row
from rompatch.store.patches import now
from rompatch.store.records import ScoreRecord, VerificationRecord, decoded, verification_from


class SettingVerbs:
    """Small values that a store remembers: its base model, the active stack."""

    session: Session

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of *key*, any JSON value; *default* where it was never set. Reads only."""
        table = schema.settings
        with self.session.reading() as connection:
            text = connection.scalar(select(table.c.value).where(table.c.key == key))
        return default if text is None else decoded(text, f"setting {key!r}")

    def set_setting(self, key: str, value: Any) -> None:
        """Remember *value* (any JSON value) under *key*. Writes."""
        table = schema.settings
        with self.session.writing() as connection:
            connection.execute(delete(table).where(table.c.key == key))
            connection.execute(insert(table).values(key=key, value=canonical_json(value)))


class VerificationVerbs:
    """Verbs on verification runs; part of :class:`~rompatch.store.ledger.Ledger`."""

    session: Session

    def record_verification(
        self,
        suite: str,
        *,
        source: str,
        scores: Iterable[ScoreRecord],
        patch_id: str | None = None,
        stack: str | None = None,
        revision: int | None = None,
        prompts: Any = (),
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, Any] | None = None,
        created_at: str | None = None,
    ) -> VerificationRecord:
        """Record one run of a suite over a patch, a stack's revision, or both. Writes.

        Args:
            suite: the suite's name.
            source: where it came from (atlas relation, file).
            scores: its numbers.
            patch_id: full id of the patch that was judged.
            stack: name of the stack whose *revision* was in the model.
            revision: that revision's number.
            prompts: the prompts used and what was measured on each, any JSON value.
            settings: how it was run.
            environment: library versions, machine, dtype.
            created_at: when it ran, where that was not now.

        Raises:
            PatchNotFoundError: no such patch, stack or revision.
            StoreError: a score is not a finite number, or a text is no JSON.
        """
        try:
            texts = {
                "prompts": canonical_json(prompts),
                "settings": canonical_json(dict(settings or {})),
                "environment": canonical_json(dict(environment or {})),
            }
            rows = [vars(score) for score in scores]
            canonical_json(rows)
        except (ValueError, TypeError) as error:
            raise StoreError(f"The verification cannot be recorded: {error}.", next_step="Use None for NaN.") from error
        with self.session.writing() as connection:
            known = select(schema.patches.c.id).where(schema.patches.c.id == patch_id)
            if patch_id is not None and connection.scalar(known) is None:
                raise PatchNotFoundError(f"There is no patch {patch_id[:SHORT_ID]} to record a verification of.")
            row: dict[str, Any] = {
                "patch_id": patch_id,
                "suite": suite,
                "suite_source": source,
                "created_at": created_at or now(),
                **texts,
            }
            row["revision_id"] = None if stack is None else self._revision_id_of(stack, revision)
            number = insert_row(connection, schema.verifications, row)
            if rows:
                connection.execute(insert(schema.scores), [score | {"verification_id": number} for score in rows])
        return self.verification(number)

    def verification(self, number: int) -> VerificationRecord:
        """The verification of that number. Reads only.

        Raises:
            PatchNotFoundError: there is none.
        """
        found = self._verifications(schema.verifications.c.id == number)
        if not found:
            raise PatchNotFoundError(f"There is no verification {number}.", next_step="`rompatch log` lists them.")
        return found[0]

    def verifications(self, patch_id: str | None = None, *, limit: int | None = None) -> tuple[VerificationRecord, ...]:
        """Verifications, newest first, of one patch if asked. Reads only."""
        wanted = () if patch_id is None else (schema.verifications.c.patch_id == patch_id,)
        return self._verifications(*wanted, limit=limit)

    def _verifications(self, *wanted: Any, limit: int | None = None) -> tuple[VerificationRecord, ...]:
        table, revisions, stacks, scores = schema.verifications, schema.stack_revisions, schema.stacks, schema.scores
        query = (
            select(table, stacks.c.name.label("stack"), revisions.c.number.label("revision"))
            .outerjoin(revisions, revisions.c.id == table.c.revision_id)
            .outerjoin(stacks, stacks.c.id == revisions.c.stack_id)
            .where(*wanted)
            .order_by(table.c.created_at.desc(), table.c.id.desc())
            .limit(limit)
        )
        with self.session.reading() as connection:
            return tuple(
                verification_from(
                    row,
                    connection.execute(
                        select(scores)
                        .where(scores.c.verification_id == row["id"])
                        .order_by(scores.c.phase.desc(), scores.c.metric)
                    ).mappings(),
                )
                for row in connection.execute(query).mappings().all()
            )

    def _revision_id_of(self, stack: str, number: int | None) -> int:
        stacks, revisions = schema.stacks, schema.stack_revisions
        query = select(revisions.c.id).join(stacks, stacks.c.id == revisions.c.stack_id)
        query = query.where(stacks.c.name == stack)
        query = query.where(revisions.c.number == (stacks.c.revision if number is None else number))
        # A removed stack may have had the name; it counts where it was removed while it was scored.
        query = query.order_by(stacks.c.removed_at.is_not(None), stacks.c.id.desc())
        with self.session.reading() as connection:
            found = connection.scalar(query)
        if found is None:
            raise PatchNotFoundError(f"There is no revision {number} of a stack {stack!r}.")
        return int(found)
