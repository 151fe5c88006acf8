"""The schema: created and upgraded in one piece or not at all, and never by Alembic when nothing is to be done."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from tiny_patches import record, tiny_patch

import rompatch
from rompatch.errors import SchemaError, StoreError
from rompatch.store import migrate, schema
from rompatch.store.engine import Session, ledger_url, make_engine
from rompatch.store.ledger import Ledger
from rompatch.store.location import ledger_path
from rompatch.store.records import ScoreRecord


def script_directory() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(migrate.migrations_folder()))
    return ScriptDirectory.from_config(config)


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def run(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


def session(path: Path) -> Session:
    return Session(make_engine(ledger_url(path)), str(path))


def test_the_constant_is_the_newest_migration() -> None:
    assert script_directory().get_heads() == [schema.HEAD]


def test_the_migrations_make_exactly_the_declared_tables(new_ledger: Path) -> None:
    engine = make_engine(ledger_url(new_ledger))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    engine.dispose()


def test_the_migrations_make_exactly_the_declared_checks_and_keys(new_ledger: Path) -> None:
    """Alembic's comparison ignores CHECK constraints; SQLite keeps the statements, so compare their parts."""
    engine = make_engine(ledger_url(":memory:"))
    with engine.begin() as connection:
        schema.metadata.create_all(connection)
        declared = dict(connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL").all())
    engine.dispose()
    migrated = dict(run(new_ledger, "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL"))
    del migrated["alembic_version"]

    def parts(statements: dict[object, object]) -> dict[object, list[str]]:
        return {name: sorted(line.strip(" ,\t") for line in str(sql).split("\n")) for name, sql in statements.items()}

    assert parts(migrated) == parts(declared)


def test_a_new_ledger_is_durable_and_concurrent(new_ledger: Path) -> None:
    with Ledger.open(new_ledger) as ledger, ledger.session.reading() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert values == ["wal", 2, 1, 10_000]


def test_opening_an_up_to_date_ledger_loads_no_alembic(store: Path) -> None:
    script = (
        "import sys; from rompatch.store.ledger import Ledger; Ledger.open(sys.argv[1]).close();"
        "print(*sorted({'alembic', 'torch', 'transformers', 'sqlalchemy.orm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, store], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_opening_writes_nothing(store: Path) -> None:
    before = ledger_path(store).read_bytes()
    Ledger.open(store).close()
    assert ledger_path(store).read_bytes() == before


def test_a_ledger_of_a_newer_rompatch_says_upgrade_and_is_left_alone(store: Path) -> None:
    run(ledger_path(store), "UPDATE alembic_version SET version_num = '9999'")
    before = dump(ledger_path(store))
    with pytest.raises(SchemaError, match="Upgrade rompatch") as caught:
        Ledger.open(store)
    assert caught.value.found == "9999"
    assert dump(ledger_path(store)) == before


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM alembic_version", "INSERT INTO alembic_version VALUES ('9999')", "DROP TABLE alembic_version"],
)
def test_a_database_that_is_no_ledger_is_left_alone(store: Path, statement: str) -> None:
    run(ledger_path(store), statement)
    before = dump(ledger_path(store))
    with pytest.raises(SchemaError, match="not a rompatch ledger"):
        Ledger.open(store, create=True)
    assert dump(ledger_path(store)) == before


def test_a_creation_that_was_interrupted_is_finished_at_the_next_opening(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        assert ledger.patches() == ()


def test_the_schema_goes_down_and_up_again(store: Path) -> None:
    """Down to nothing and up again gives the same schema."""
    from alembic import command

    before = [line for line in dump(ledger_path(store)) if line.startswith("CREATE")]
    config = Config()
    config.set_main_option("script_location", str(migrate.migrations_folder()))
    open_session = session(ledger_path(store))
    with open_session.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert connection.exec_driver_sql("SELECT count(*) FROM sqlite_master WHERE type = 'table'").scalar() == 1
        command.upgrade(config, "head")
    open_session.close()
    assert [line for line in dump(ledger_path(store)) if line.startswith("CREATE")] == before


# --- upgrades: from every earlier schema with rows in it (a change of schema, its migration and that test arrive
# together), and from the present one by an invented migration, to see what failing ones do.


def test_the_upgrade_from_0001_keeps_every_row_and_adds_the_benchmarks(store: Path) -> None:
    path = ledger_path(store)
    path.unlink()
    old = session(path)
    assert migrate.ensure_current(old, head="0001")
    ledger = Ledger(old)  # as a rompatch of that time would have filled it
    ledger.create_stack("main", record(ledger, tiny_patch()).base_id)
    ledger.push("main", [tiny_patch().id])
    ledger.record_verification("s", source="file", scores=[ScoreRecord("post", "es", 1.0, 2)], patch_id=tiny_patch().id)
    ledger.set_setting("base", {"model": "x"})
    ledger.close()
    before = dump(path)
    assert not any("bench" in line for line in before)
    with Ledger.open(path) as upgraded:
        assert upgraded.bench_runs() == ()
        assert len(upgraded.members("main")) == 1
        assert upgraded.verifications()[0].scores == (ScoreRecord("post", "es", 1.0, 2),)
        run = upgraded.begin_bench_run({}, name=None, base_id=upgraded.bases()[0].id, benchmark="zsre", method="rome")
        assert upgraded.bench_runs() == (run,)
    kept = {line for line in before if line.startswith("INSERT") and "alembic_version" not in line}
    assert kept <= set(dump(path))


NEXT = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "next", "{head}"
branch_labels = depends_on = None

def upgrade():
    op.add_column("patches", sa.Column("tag", sa.Text()))
    op.create_table("notes", sa.Column("id", sa.Integer(), primary_key=True))
    with op.batch_alter_table("bases") as batch:
        batch.add_column(sa.Column("rank", sa.Integer(), nullable=False, server_default="7"))
    {ending}

def downgrade():
    pass
"""


def next_migrations(tmp_path: Path, ending: str) -> Path:
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.migrations_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "next.py").write_text(NEXT.format(head=schema.HEAD, ending=ending))
    return folder


@pytest.fixture
def filled(store: Path) -> Path:
    """A ledger with rows in it."""
    with Ledger.open(store) as ledger:
        ledger.create_stack("main", record(ledger, tiny_patch()).base_id)
        ledger.push("main", [tiny_patch().id])
    return ledger_path(store)


def test_an_upgrade_keeps_every_row(filled: Path, tmp_path: Path) -> None:
    before = run(filled, "SELECT * FROM stack_members")
    opened = session(filled)
    assert migrate.ensure_current(opened, next_migrations(tmp_path, "pass"), "next")
    assert not migrate.ensure_current(opened, tmp_path, "next")
    opened.close()
    assert run(filled, "SELECT * FROM stack_members") == before
    assert run(filled, "SELECT rank FROM bases") == [(7,)]
    assert run(filled, "SELECT tag FROM patches") == [(None,)]
    assert run(filled, "PRAGMA foreign_key_check") == []


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        ("raise RuntimeError('half way')", RuntimeError),
        ("op.execute('SELECT * FROM nowhere')", StoreError),
        ("op.execute('DELETE FROM patches')", SchemaError),
    ],
)
def test_a_failing_migration_leaves_schema_and_rows_untouched(
    filled: Path, tmp_path: Path, ending: str, error: type[Exception]
) -> None:
    before = dump(filled)
    opened = session(filled)
    with pytest.raises(error):
        migrate.ensure_current(opened, next_migrations(tmp_path, ending), "next")
    with opened.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    opened.close()
    assert dump(filled) == before
    with Ledger.open(filled) as ledger:
        assert len(ledger.members("main")) == 1


def test_migrations_are_found_in_the_package_before_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "rompatch"
    package.mkdir(parents=True)
    monkeypatch.setattr(rompatch, "__file__", str(package / "__init__.py"))
    with pytest.raises(StoreError, match="lacks its database migrations"):
        migrate.migrations_folder()
    for folder in (tmp_path / "site" / "migrations", package / "_migrations"):
        folder.mkdir()
        (folder / "env.py").touch()
        assert migrate.migrations_folder() == folder
