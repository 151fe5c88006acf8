"""Bring a ledger's schema to :data:`~rompatch.store.schema.HEAD`, all or nothing.

Opening an up-to-date ledger compares one row and imports no Alembic. Otherwise every pending migration runs in **one**
transaction that we begin ourselves (BEGIN IMMEDIATE on SQLite, where Alembic alone is not atomic), so a failing
migration leaves the schema untouched, and of two programs that come at once the second finds the work done.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect

import rompatch
from rompatch.errors import SchemaError, StoreError
from rompatch.store.engine import Session
from rompatch.store.schema import HEAD


def migrations_folder() -> Path:
    """Alembic's scripts: inside the package (wheel), else beside it (editable install, bare checkout).

    Raises:
        StoreError: neither is there: the installation is incomplete.
    """
    package = Path(rompatch.__file__).parent
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise StoreError(
        "This installation of rompatch lacks its database migrations.",
        expected=f"{package / '_migrations'} or {package.parent / 'migrations'}",
        next_step="Install it again: `pip install --force-reinstall rompatch`.",
    )


def revision_of(connection: Connection) -> str | None:
    """The ledger's schema revision; None for a database without any table.

    Raises:
        SchemaError: it has tables, but not a ledger's.
    """
    tables = inspect(connection).get_table_names()
    if not tables:
        return None
    rows = connection.exec_driver_sql("SELECT * FROM alembic_version").all() if "alembic_version" in tables else []
    if len(rows) != 1 or len(rows[0]) != 1:
        raise SchemaError(
            "This database is not a rompatch ledger.",
            expected=f"one schema revision, {HEAD}",
            found=f"{len(rows)} revisions, tables {sorted(tables)[:6]}",
            next_step="Check the path given as --store or ROMPATCH_STORE.",
        )
    return str(rows[0][0])


def ensure_current(session: Session, folder: Path | None = None, head: str = HEAD) -> bool:
    """Upgrade the ledger if its schema is older than *head*; True if it was. Writes only then.

    *folder* and *head* name other migrations than this version's own (tests of upgrades).

    Raises:
        SchemaError: the ledger is newer than this rompatch, or no ledger, or the upgrade failed (nothing is changed).
    """
    with session.reading() as connection:
        if revision_of(connection) == head:
            return False
    _upgrade(session, folder or migrations_folder(), head)
    return True


def _pragma(connection: Connection, text: str) -> list[tuple[object, ...]]:
    """Run a PRAGMA beside SQLAlchemy, which would begin a transaction, in which these have no effect."""
    if connection.dialect.name != "sqlite":
        return []
    driver = connection.connection.driver_connection
    assert driver is not None
    return list(driver.execute(f"PRAGMA {text}").fetchall())


def _upgrade(session: Session, folder: Path, head: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    with session.unlocked() as connection:
        _pragma(connection, "journal_mode = WAL")
        _pragma(connection, "foreign_keys = OFF")  # a migration may rebuild a table that others refer to
    try:
        with session.writing() as connection:
            current = revision_of(connection)
            if current == head:
                return
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if current is not None and current not in known:
                raise SchemaError(
                    f"The store {session.where} is of a newer rompatch than this one ({rompatch.__version__}).",
                    expected=f"schema revision {head} or older",
                    found=current,
                    next_step="Upgrade rompatch: `pip install --upgrade rompatch`.",
                )
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, head)
            except CommandError as error:
                raise SchemaError(f"Upgrading the ledger {session.where} failed: {error}.") from error
            if broken := _pragma(connection, "foreign_key_check"):
                raise SchemaError(
                    f"Upgrading the ledger {session.where} would break {len(broken)} references; nothing was changed.",
                    next_step="Run `rompatch fsck` with the version that wrote it.",
                )
    finally:
        with session.unlocked() as connection:
            _pragma(connection, "foreign_keys = ON")
