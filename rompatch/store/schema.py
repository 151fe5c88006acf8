"""The ledger's tables, as SQLAlchemy Core sees them. ``migrations/`` creates them; a test holds the two equal.

Core and not the ORM: importing it is a third quicker, and every command pays for the import. JSON is kept as text in
canonical spelling, times as UTC ISO 8601 with microseconds (one width, so that they sort as text).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
    text,
)
from sqlalchemy import UniqueConstraint as Unique

HEAD = "0003"
"""The newest revision in ``migrations/versions``. Comparing it needs no Alembic, so opening a store stays quick."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_LIVING, _OPEN = "removed_at IS NULL", "removed_in IS NULL"
_REVISION = ["stack_revisions.stack_id", "stack_revisions.number"]

bases = Table(
    "bases",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("source", Text, nullable=False),
    Column("model_type", Text, nullable=False),
    Column("config_hash", Text, nullable=False),
    Column("tokenizer_hash", Text, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("first_seen", String(32), nullable=False),
    CheckConstraint("length(id) = 64", name="id"),
)

patches = Table(
    "patches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("base_id", String(64), ForeignKey("bases.id"), nullable=False),
    Column("method", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("subject_key", Text, nullable=False),
    Column("template", Text, nullable=False),
    Column("relation", Text),
    Column("target_new", Text, nullable=False),
    Column("target_true", Text),
    Column("header", Text, nullable=False),
    Column("file_size", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("author", Text),
    Column("message", Text),
    Column("measurements", Text, nullable=False),
    Column("removed_at", String(32)),
    Column("source", Text),
    Column("expires_at", String(32)),
    CheckConstraint("length(id) = 64", name="id"),
    CheckConstraint("file_size > 0", name="file_size"),
    Index(None, "base_id"),
    Index(None, "subject_key"),
    Index(None, "created_at"),
    Index(None, "expires_at"),
    Index(None, "removed_at", "created_at"),
)
"""``removed_at`` marks a tombstone: the file is gone, the row keeps the identity that history refers to. ``source`` is
where the fact comes from, ``expires_at`` the first day (ISO 8601) on which it may no longer hold."""

sites = Table(
    "sites",
    metadata,
    Column("patch_id", String(64), ForeignKey("patches.id", ondelete="CASCADE"), primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("layer", Integer, nullable=False),
    Column("parameter", Text, nullable=False),
    Column("shape", Text, nullable=False),
    Column("tensor_sha256", String(64), nullable=False),
    Column("key_sketch", LargeBinary),
    CheckConstraint("n >= 0 AND layer >= 0", name="numbers"),
    Index(None, "parameter"),
)
"""``key_sketch``: a random projection of the mean key, by which patches that share a key are found without their files;
bytes to the ledger."""

stacks = Table(
    "stacks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("base_id", String(64), ForeignKey("bases.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("removed_at", String(32)),
    CheckConstraint("revision >= 0", name="revision"),
    CheckConstraint("length(name) > 0", name="name"),
    Index("uq_stacks_name", "name", unique=True, sqlite_where=text(_LIVING)),
)
"""``removed_at`` marks a removed stack. Its revisions stay; its name may be given to a new stack."""

stack_revisions = Table(
    "stack_revisions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("stack_id", Integer, ForeignKey("stacks.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("parent", Integer),
    Column("created_at", String(32), nullable=False),
    Column("author", Text),
    Column("action", String(16), nullable=False),
    Column("message", Text),
    Column("reason", Text),
    Column("details", Text, nullable=False, server_default="{}"),
    Unique("stack_id", "number"),
    CheckConstraint("length(action) > 0", name="action"),
    CheckConstraint("(number = 0 AND parent IS NULL) OR (number > 0 AND parent < number)", name="parent"),
    Index(None, "created_at"),
)

stack_members = Table(
    "stack_members",
    metadata,
    Column("stack_id", Integer, primary_key=True, autoincrement=False),
    Column("added_in", Integer, primary_key=True, autoincrement=False),
    Column("patch_id", String(64), ForeignKey("patches.id"), primary_key=True),
    Column("removed_in", Integer),
    ForeignKeyConstraint(["stack_id", "added_in"], _REVISION, ondelete="CASCADE"),
    ForeignKeyConstraint(["stack_id", "removed_in"], _REVISION),
    CheckConstraint("removed_in > added_in", name="interval"),
    Index(None, "patch_id"),
    Index(None, "stack_id", "removed_in"),
    Index("uq_stack_members_stack_id_patch_id", "stack_id", "patch_id", unique=True, sqlite_where=text(_OPEN)),
)
"""One row a stay of a patch on a stack: from revision ``added_in`` on, until ``removed_in`` (null: still there). A
revision of 1,000 patches that adds one writes one row, and reading the members at any revision is one query."""

stack_tags = Table(
    "stack_tags",
    metadata,
    Column("stack_id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(100), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("author", Text),
    Column("message", Text),
    ForeignKeyConstraint(["stack_id", "revision"], _REVISION, ondelete="CASCADE"),
    CheckConstraint("length(name) > 0", name="name"),
)

verifications = Table(
    "verifications",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("patch_id", String(64), ForeignKey("patches.id")),
    Column("revision_id", Integer, ForeignKey("stack_revisions.id")),
    Column("suite", Text, nullable=False),
    Column("suite_source", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("settings", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("prompts", Text, nullable=False),
    Index(None, "patch_id"),
    Index(None, "created_at"),
)

scores = Table(
    "scores",
    metadata,
    Column("verification_id", Integer, ForeignKey("verifications.id", ondelete="CASCADE"), primary_key=True),
    Column("phase", String(8), primary_key=True),
    Column("metric", String(64), primary_key=True),
    Column("value", Float),
    Column("n", Integer, nullable=False),
    CheckConstraint("phase IN ('pre', 'post')", name="phase"),
    CheckConstraint("n >= 0", name="n"),
)

bench_runs = Table(
    "bench_runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text),
    Column("base_id", String(64), ForeignKey("bases.id"), nullable=False),
    Column("benchmark", String(32), nullable=False),
    Column("method", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("settings", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Unique("name"),
    CheckConstraint("length(id) = 64", name="id"),
    CheckConstraint("length(name) > 0", name="name"),
    Index(None, "created_at"),
)
"""``settings`` is all that the numbers depend on: the id is the hash of it and of the name."""

bench_results = Table(
    "bench_results",
    metadata,
    Column("run_id", String(64), ForeignKey("bench_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("case_id", BigInteger),
    Column("created_at", String(32), nullable=False),
    Column("status", String(8), nullable=False),
    Column("error_kind", String(64)),
    Column("error", Text),
    Column("request", Text, nullable=False),
    Column("measures", Text, nullable=False),
    Column("measurements", Text, nullable=False),
    Column("prompts", Text, nullable=False),
    CheckConstraint("position >= 0", name="position"),
    CheckConstraint(
        "(status = 'scored' AND error IS NULL) OR (status = 'failed' AND error IS NOT NULL)", name="status"
    ),
)
"""One row for each record of a run's data set, by its place in the file: damaged records may have no id."""

settings = Table(
    "settings",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("value", Text, nullable=False),
)


def speak(backend: str) -> None:
    """Say the conditions of partial indices in the words of the database *backend* too; SQLite's are there already.

    Only where such a database is in use: SQLAlchemy loads a whole dialect to check ``postgresql_where``, and every
    command on a store in a file would wait for it.
    """
    if backend != "postgresql":
        return
    for table in metadata.tables.values():
        for index in table.indexes:
            condition = index.dialect_kwargs.get("sqlite_where")
            if condition is not None:
                index.dialect_kwargs["postgresql_where"] = condition


@event.listens_for(metadata, "before_create")
def _speak_as_created(_target: MetaData, connection: Connection, **_about: object) -> None:
    """Whoever creates the tables, on whatever engine, gets the partial indices as such."""
    speak(connection.dialect.name)
