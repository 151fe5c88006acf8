"""The database connection: how SQLite is opened, where transactions begin and end, what its errors mean to a user."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from rompatch.errors import ConflictError, StoreError
from rompatch.store import schema

BUSY_SECONDS = 10
_WRITE = "rompatch_write"

_REBUILD = (
    "Restore it from a backup. Without one, move it away (with its -wal and -shm): `rompatch use MODEL` makes a new "
    "ledger, and `rompatch fsck --repair` records the patch files in it; stack, history and scores are lost."
)

_ERRORS = (
    ("database is locked", "another program has been writing to it for too long", "Wait for it to finish, or end it."),
    ("database or disk is full", "the disk is full", "Free some space and try again; nothing was half written."),
    ("disk i/o error", "the disk reports an error (full, or a file size limit?)", "Check the disk, then try again."),
    ("readonly database", "it is read-only", "Change its permissions, or copy the store to where you may write."),
    ("unable to open", "the file cannot be opened", "Check the path and the permissions of the file and its folder."),
    ("not a database", "the file is not an SQLite database", "Check the path; restore the ledger from a backup."),
    ("malformed", "the database is damaged", _REBUILD),
    ("no such table", "a table is missing", "It is not a rompatch ledger, or damaged: restore it from a backup."),
    ("no such column", "a column is missing", "It is not a rompatch ledger, or damaged: restore it from a backup."),
)


def ledger_url(target: Path | str) -> URL:
    """The SQLAlchemy URL of a ledger: *target* is a database file, a store's folder, or a URL itself.

    Raises:
        StoreError: it looks like a URL but is none.
    """
    if isinstance(target, str) and "://" in target:
        try:
            return make_url(target)
        except ArgumentError as error:
            raise StoreError(f"{target!r} is not a database URL.", next_step="Write it like sqlite:///path.") from error
    path = Path(target)
    return URL.create("sqlite", database=str(path / "ledger.db" if path.is_dir() else path))


def make_engine(url: URL) -> Engine:
    """An engine without a pool. SQLite gets WAL, foreign keys, full syncs, and explicit BEGIN (IMMEDIATE to write).

    Raises:
        StoreError: the URL names a database or driver that is not installed.
    """
    try:
        engine = create_engine(url, poolclass=NullPool)
    except (NoSuchModuleError, ArgumentError, ModuleNotFoundError) as error:
        raise StoreError(
            f"No driver for the ledger {url.render_as_string()}: {error}.", next_step="Install the driver with pip."
        ) from error
    schema.speak(url.get_backend_name())
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # else sqlite3 begins late and commits early, and DDL is not atomic
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA trusted_schema = OFF")  # a hostile file's views and triggers call nothing
    cursor.close()


def _begin(connection: Connection) -> None:
    # IMMEDIATE: two writers that both read first and then upgrade would deadlock, and one would fail at once.
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn database errors into :class:`StoreError` that name the ledger *where* and the next step."""
    try:
        yield
    except IntegrityError as error:
        raise ConflictError(
            f"The ledger {where} refuses the change: {error.orig}.",
            next_step="Another program may have changed it; try again.",
        ) from error
    except (DBAPIError, sqlite3.Error) as error:
        text = str(error.orig if isinstance(error, DBAPIError) else error)
        for pattern, meaning, next_step in _ERRORS:
            if pattern in text.lower():
                raise StoreError(f"The ledger {where}: {meaning} ({text}).", next_step=next_step) from error
        raise StoreError(f"The ledger {where} failed: {text}.", next_step="Run `rompatch fsck`.") from error
    except UnicodeDecodeError as error:
        if not _from_the_database(error):
            raise
        raise StoreError(
            f"The ledger {where}: the database is damaged (text that is not UTF-8).",
            next_step=_REBUILD,
        ) from error


def _from_the_database(error: BaseException) -> bool:
    """Whether *error* was raised by the driver (which quotes damaged schemas) and not by a caller's own code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module.startswith(("sqlalchemy.", __name__))


def insert_row(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    """Insert one row into a table with a whole-number key and return that key."""
    key = connection.execute(insert(table).values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


class Session:
    """One connection to one ledger and the transactions on it. For one thread at a time."""

    def __init__(self, engine: Engine, where: str) -> None:
        self.where = where
        self._engine = engine
        with translated(where):
            self._connection = engine.connect()

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        self._connection.close()
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the ledger throughout. Joins a running transaction."""
        with translated(self.where):
            if self._connection.in_transaction():
                yield self._connection
            else:
                self._connection.execution_options(**{_WRITE: False})
                with self._connection.begin():
                    yield self._connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """All or nothing. Inside a running transaction it is a savepoint of it."""
        with translated(self.where):
            if self._connection.in_transaction():
                with self._connection.begin_nested():
                    yield self._connection
            else:
                self._connection.execution_options(**{_WRITE: True})
                with self._connection.begin():
                    yield self._connection

    @contextmanager
    def unlocked(self) -> Iterator[Connection]:
        """The connection outside any transaction, for what must not run inside one.

        Raises:
            StoreError: a transaction is running.
        """
        if self._connection.in_transaction():
            raise StoreError(f"The ledger {self.where} is in the middle of a transaction.")
        with translated(self.where):
            yield self._connection

    def seize(self) -> None:
        """Lock everybody else out of an SQLite database until :meth:`release` or :meth:`close`. Writes.

        Leaving WAL is what SQLite refuses while any other connection is open, even an idle one. It also deletes the
        files -wal and -shm.

        Raises:
            StoreError: another connection is open, or a transaction is running.
        """
        try:
            # BEGIN EXCLUSIVE for a lock also where the journal was no WAL; in this locking mode COMMIT keeps it.
            self._execute("PRAGMA busy_timeout = 0", "PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = DELETE")
            self._execute("BEGIN EXCLUSIVE", "COMMIT")
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let everybody in again after :meth:`seize`."""
        with suppress(StoreError):  # the old journal mode cannot be had while others are open; it has not changed then
            self._execute("PRAGMA locking_mode = NORMAL", "PRAGMA journal_mode = WAL")
        self._execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}", "SELECT 1 FROM sqlite_master")

    def _execute(self, *statements: str) -> None:
        """Run *statements* beside SQLAlchemy, which would begin a transaction first."""
        with self.unlocked() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            for statement in statements:
                driver.execute(statement).fetchall()
