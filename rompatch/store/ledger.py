"""The ledger: the only door to the database. Verbs on domain nouns; frozen records come out.

with Ledger.open(store / "ledger.db") as ledger, ledger.transaction():
    record = ledger.add_patch(patch.header, patch_id=patch.id, file_size=path.stat().st_size)
    ledger.push("main", [record.id], message="try Rome")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from sqlalchemy import inspect

from rompatch.errors import ConflictError, StoreError
from rompatch.store.bench import BenchVerbs
from rompatch.store.chains import ChainVerbs
from rompatch.store.changes import ChangeVerbs
from rompatch.store.engine import Session, ledger_url, make_engine, translated
from rompatch.store.history import HistoryVerbs
from rompatch.store.lookup import ambiguous, matches, not_found
from rompatch.store.migrate import ensure_current
from rompatch.store.records import PatchRecord
from rompatch.store.revisions import RevisionVerbs
from rompatch.store.runs import VerificationVerbs

__all__ = ["Ledger"]


class Ledger(ChangeVerbs, RevisionVerbs, VerificationVerbs, BenchVerbs, HistoryVerbs, ChainVerbs):
    """One open ledger, for one thread at a time; other processes may use the same file meanwhile.

    A verb that writes is atomic. Several become atomic together inside :meth:`transaction`.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    @classmethod
    def open(cls, target: Path | str, create: bool = False) -> Ledger:
        """Open the ledger at *target*: a database file, a store's folder, or an SQLAlchemy URL.

        Writes only if the ledger is new (*create*) or of an older schema, which is upgraded.

        Raises:
            StoreError: there is none (and *create* is false), or it cannot be opened.
            SchemaError: it is newer than this rompatch, or another program's database.
        """
        url = ledger_url(target)
        where = url.render_as_string(hide_password=True)
        is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
        if is_file:
            where = str(url.database)
            if not create and not Path(where).is_file():
                raise StoreError(
                    f"There is no ledger at {where}.",
                    next_step="`rompatch create` makes one, or name another store with --store.",
                    path=where,
                )
        existing = _inode(where)
        session = Session(make_engine(url), where)
        opened = existing or _inode(where)
        try:
            ensure_current(session)
            if _inode(where) != opened:  # while it waited for the lock
                raise StoreError(f"Another program deleted the new ledger {where} just now.", next_step="Try again.")
        except BaseException:
            session.close()
            raise
        return cls(session)

    @property
    def where(self) -> str:
        """The database's path or URL (without password)."""
        return self.session.where

    def close(self) -> None:
        """Close the connection."""
        self.session.close()

    def discard(self, unused: Callable[[], bool]) -> bool:
        """Delete an SQLite ledger's file and close it, if nobody else has it open and *unused* then agrees. Writes.

        False: it stays.
        """
        try:
            self.session.seize()
        except StoreError:
            return False
        if not unused():
            self.session.release()
            return False
        if os.name == "nt":  # which deletes no open file, whoever has it open
            self.close()
        try:
            for end in ("-journal", ""):  # the lock goes last
                Path(self.where + end).unlink(missing_ok=True)
        except OSError:
            return False
        finally:
            self.close()
        return True

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[Ledger]:
        """Everything inside happens, or nothing of it. Other writers wait meanwhile; keep it short."""
        with self.session.writing():
            yield self

    def resolve(self, name: str, *, active_only: bool = False) -> PatchRecord:
        """The one patch that *name* means: an id, a prefix of one (4 hex digits or more), or a subject. Reads only.

        With *active_only* only patches of the active stack are meant.

        Raises:
            PatchNotFoundError: none; similar names are suggested.
            AmbiguousIdError: several; they are listed.
            ConflictError: with *active_only*, *name* means patches, but none that is active.
        """
        with self.session.reading() as connection:
            found = matches(connection, name)
            if not found:
                raise not_found(connection, name)
            if active_only:
                stack = self.active_stack()
                active = set() if stack is None else set(self.member_ids(stack))
                inactive, found = found, [patch for patch in found if patch.id in active]
                if not found:
                    raise ConflictError(
                        f"{name!r} means patch {inactive[0].label}, which is not active.",
                        next_step=f"`rompatch apply {inactive[0].short_id}` would put it onto the stack.",
                        patch_id=inactive[0].id,
                    )
        if len(found) > 1:
            raise ambiguous(name, found)
        return found[0]

    def integrity_problems(self) -> tuple[str, ...]:
        """What the database itself finds wrong with its pages and references. Reads only; SQLite."""
        with translated(self.where), self.session.reading() as connection:
            if connection.dialect.name != "sqlite":
                return ()
            pages = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check") if row[0] != "ok"]
            rows = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            tables = set(inspect(connection).get_table_names())
        return (
            *pages,
            *(f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}" for row in rows if row[0] in tables),
        )


def _inode(where: str) -> int | None:
    """Which file is at that path, if one is; an inode is not used again while somebody has it open."""
    with suppress(OSError, ValueError):
        return Path(where).stat().st_ino
    return None
