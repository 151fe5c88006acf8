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
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine.mock import MockConnection
from tiny_patches import record, tiny_patch

import rompatch
from rompatch.errors import SchemaError, StoreError
from rompatch.patch import canonical_json
from rompatch.store import migrate, schema
from rompatch.store.engine import Session, ledger_url, make_engine
from rompatch.store.ledger import Ledger
from rompatch.store.location import ledger_path


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


def parts(statements: dict[object, object]) -> dict[object, list[str]]:
    """The columns and constraints of each statement, in any order: a column that was added later stands at the end."""
    return {name: sorted(_split(str(sql).replace('"', ""))) for name, sql in statements.items()}


def _split(sql: str) -> list[str]:
    """*sql* cut at its outermost brackets and at the commas inside these."""
    pieces, depth = [""], 0
    for char in " ".join(sql.split()):
        depth += (char == "(") - (char == ")")
        if depth <= 1 and char in "(),":
            pieces.append("")
        else:
            pieces[-1] += char
    return [piece.strip() for piece in pieces if piece.strip()]


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

    assert parts(migrated) == parts(declared)


def partial_indices_on_postgresql() -> set[str]:
    """The statements by which the declared tables would be created there, those of partial indices."""
    dialect, made = PGDialect(), set()
    schema.metadata.create_all(
        MockConnection(dialect, lambda statement, *_, **__: made.add(str(statement.compile(dialect=dialect)))),
        checkfirst=False,
    )
    return {" ".join(statement.split()) for statement in made if "WHERE" in statement}


def test_on_postgresql_the_partial_indices_are_partial_too() -> None:
    uq = "CREATE UNIQUE INDEX uq_stack"
    assert partial_indices_on_postgresql() == {
        f"{uq}s_name ON stacks (name) WHERE removed_at IS NULL",
        f"{uq}_members_stack_id_patch_id ON stack_members (stack_id, patch_id) WHERE removed_in IS NULL",
    }


def test_a_store_on_postgresql_compares_its_partial_indices_by_their_conditions() -> None:
    script = (
        "from rompatch.store import engine, schema; engine.create_engine = lambda url, **_: url;"  # needs a driver
        "engine.make_engine(engine.make_url('postgresql://host/name'));"
        "print(*(i.dialect_kwargs['postgresql_where'] for t in schema.metadata.sorted_tables for i in t.indexes"
        " if i.dialect_kwargs['postgresql_where'] is not None), sep=', ')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "removed_at IS NULL, removed_in IS NULL"


def test_a_new_ledger_is_durable_and_concurrent(new_ledger: Path) -> None:
    with Ledger.open(new_ledger) as ledger, ledger.session.reading() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert values == ["wal", 2, 1, 10_000]


def test_opening_an_up_to_date_ledger_loads_neither_alembic_nor_another_databases_dialect(store: Path) -> None:
    script = (
        "import sys; from rompatch.store.ledger import Ledger; Ledger.open(sys.argv[1]).close();"
        "heavy = {'alembic', 'torch', 'transformers', 'sqlalchemy.orm', 'sqlalchemy.dialects.postgresql'};"
        "print(*sorted(heavy & set(sys.modules)))"
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

    def statements() -> list[list[str]]:  # Alembic's batches put constraints in any order
        return [sorted(_split(line.replace('"', ""))) for line in dump(ledger_path(store)) if line.startswith("CREATE")]

    before = statements()
    config = Config()
    config.set_main_option("script_location", str(migrate.migrations_folder()))
    open_session = session(ledger_path(store))
    with open_session.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert connection.exec_driver_sql("SELECT count(*) FROM sqlite_master WHERE type = 'table'").scalar() == 1
        command.upgrade(config, "head")
    open_session.close()
    assert statements() == before


# --- upgrades: from every earlier schema with rows in it (a change of schema, its migration and that test arrive
# together), and from the present one by an invented migration, to see what failing ones do.


FIRST_ROWS = """
INSERT INTO bases VALUES ('{base}', 'pico', 'gpt2', 'c', 't', 'float32', '{{}}', '2026-01-01');
INSERT INTO patches VALUES ('{tower}', '{base}', 'rome', 'Eiffel Tower', 'eiffel tower', '{{}} is located in',
    'located in', 'Rome', 'Paris', '{header}', 1000, '2026-01-02', 'ada', 'why not', '{{}}', NULL);
INSERT INTO patches VALUES ('{ben}', '{base}', 'rome', 'Big Ben', 'big ben', '{{}} is located in',
    'located in', 'Rome', 'Paris', '{header}', 1000, '2026-01-03', NULL, NULL, '{{}}', '2026-02-01');
INSERT INTO sites VALUES ('{tower}', 0, 1, 'w', '2x3', 'x');
INSERT INTO stacks VALUES (1, 'main', '{base}', 4), (2, 'empty', '{base}', 0);
INSERT INTO stack_revisions VALUES
    (1, 1, 0, NULL, '2026-01-04', 'ada', 'create', NULL, NULL),
    (2, 2, 0, NULL, '2026-01-04', 'ada', 'create', NULL, NULL),
    (3, 1, 1, 0, '2026-01-05', 'ada', 'apply', 'one', 'T-1'),
    (4, 1, 2, 1, '2026-01-06', 'ada', 'apply', NULL, NULL),
    (5, 1, 3, 2, '2026-01-07', 'bob', 'clear', NULL, NULL),
    (6, 1, 4, 3, '2026-01-08', 'ada', 'apply', NULL, NULL);
INSERT INTO stack_members VALUES (3, '{ben}'), (4, '{ben}'), (4, '{tower}'), (6, '{tower}');
INSERT INTO verifications VALUES (1, '{tower}', 4, 's', 'file', '2026-01-09', '{{}}', '{{}}', '[]');
INSERT INTO scores VALUES (1, 'post', 'es', 1.0, 2);
INSERT INTO settings VALUES ('active_stack', '"main"'), ('base', '{{"model": "x"}}');
"""
SECOND_ROWS = """
INSERT INTO bench_runs VALUES ('{run}', NULL, '{base}', 'zsre', 'rome', '2026-01-10', '{{}}', '{{}}');
INSERT INTO bench_results VALUES ('{run}', 0, 7, '2026-01-10', 'scored', NULL, NULL, '{{}}', '{{}}', '{{}}', '{{}}');
"""
TOWER, BEN, BASE, RUN = (letter * 64 for letter in "abcd")


@pytest.fixture(params=["0001", "0002"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A ledger of an earlier schema with rows in it, as the rompatch of that time wrote them."""
    path = tmp_path / "old" / "ledger.db"
    path.parent.mkdir()
    opened = session(path)
    assert migrate.ensure_current(opened, head=request.param)
    opened.close()
    header = canonical_json(tiny_patch().header.to_json()).replace("'", "''")
    rows = FIRST_ROWS + (SECOND_ROWS if request.param > "0001" else "")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(rows.format(tower=TOWER, ben=BEN, base=BASE, run=RUN, header=header))
    return path


def test_the_upgrade_of_an_older_ledger_keeps_every_row(old: Path) -> None:
    def rows(statements: list[str]) -> set[str]:
        """The beginnings of the rows: columns are added at the end."""
        moved = ("alembic_version", "stack_members", "schema")
        return {
            line[:-2] for line in statements if line.startswith("INSERT") and not any(map(line.__contains__, moved))
        }

    before = rows(dump(old))
    Ledger.open(old).close()
    after = rows(dump(old))
    assert len(after) == len(before) >= 16
    assert all(any(row.startswith(one) for row in after) for one in before)
    assert run(old, "PRAGMA foreign_key_check") == []


def test_the_upgrade_of_an_older_ledger_keeps_the_members_of_every_revision(old: Path) -> None:
    query = "SELECT number, patch_id FROM stack_members m JOIN stack_revisions r ON r.id = m.revision_id ORDER BY 1, 2"
    listed = run(old, query)
    with Ledger.open(old) as ledger:
        assert [(number, one) for number in range(5) for one in ledger.member_ids("main", number)] == listed
        changes = [(item.action, item.added, item.removed) for item in ledger.revisions("main")]
        assert changes == [
            ("apply", (TOWER,), ()),
            ("clear", (), (TOWER, BEN)),
            ("apply", (TOWER,), ()),
            ("apply", (BEN,), ()),
            ("create", (), ()),
        ]
        assert [item.details for item in ledger.revisions("main")] == [{}] * 5
        assert [patch.id for patch in ledger.members("main")] == [TOWER]
        assert ledger.verifications()[0].revision == 2
        assert ledger.members("empty") == ()


def test_an_upgraded_ledger_does_everything(old: Path) -> None:
    with Ledger.open(old) as ledger:
        patch = ledger.patch(TOWER)
        assert (patch.source, patch.expires_at) == (None, None)
        assert ledger.fill_key_sketches({TOWER: [b"12"]}) == 1
        ledger.clear("main")
        new = tiny_patch()
        ledger.add_patch(
            new.header, patch_id=new.id, file_size=1, source="https://example.org", expires_at="2027-01-01"
        )
        assert ledger.patch(new.id).source == "https://example.org"
        ledger.begin_bench_run({}, name=None, base_id=BASE, benchmark="zsre", method="rome")
        assert ledger.integrity_problems() == ()


def test_the_schema_goes_down_to_an_older_one_with_its_rows(old: Path) -> None:
    from alembic import command

    expected = [line for line in dump(old) if "alembic_version" not in line]
    version = run(old, "SELECT version_num FROM alembic_version")[0][0]
    config = Config()
    config.set_main_option("script_location", str(migrate.migrations_folder()))
    open_session = session(old)
    migrate.ensure_current(open_session)
    with open_session.unlocked() as connection:
        migrate._pragma(connection, "foreign_keys = OFF")
    with open_session.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, str(version))
    open_session.close()

    def rows(lines: list[str]) -> list[str]:
        return sorted(line for line in lines if line.startswith("INSERT") and "alembic_version" not in line)

    assert rows(dump(old)) == rows(expected)


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
