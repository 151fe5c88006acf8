"""Membership as intervals, tags, removed stacks, details of a revision; source, expiry and key sketches of patches."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ACTIONS_BEFORE = "action IN ('create', 'apply', 'revert', 'clear', 'restore')"
ACTIONS_NOW = "length(action) > 0"


def upgrade() -> None:
    op.add_column("patches", sa.Column("source", sa.Text()))
    op.add_column("patches", sa.Column("expires_at", sa.String(32)))
    op.create_index("ix_patches_expires_at", "patches", ["expires_at"])
    op.create_index("ix_patches_removed_at_created_at", "patches", ["removed_at", "created_at"])
    op.add_column("sites", sa.Column("key_sketch", sa.LargeBinary()))
    with op.batch_alter_table("stacks", copy_from=_stacks()) as batch:
        batch.drop_constraint("uq_stacks_name", type_="unique")
        batch.add_column(sa.Column("removed_at", sa.String(32)))
    living = sa.text("removed_at IS NULL")
    op.create_index("uq_stacks_name", "stacks", ["name"], unique=True, sqlite_where=living, postgresql_where=living)
    with op.batch_alter_table("stack_revisions", copy_from=_stack_revisions(ACTIONS_BEFORE)) as batch:
        batch.drop_constraint(op.f("ck_stack_revisions_action"), type_="check")
        batch.create_check_constraint(op.f("ck_stack_revisions_action"), sa.text(ACTIONS_NOW))
        batch.add_column(sa.Column("details", sa.Text(), nullable=False, server_default="{}"))
    _rebuild_members(_interval_columns(), _to_intervals)
    is_open = sa.text("removed_in IS NULL")
    op.create_index("ix_stack_members_patch_id", "stack_members", ["patch_id"])
    op.create_index("ix_stack_members_stack_id_removed_in", "stack_members", ["stack_id", "removed_in"])
    op.create_index(
        "uq_stack_members_stack_id_patch_id",
        "stack_members",
        ["stack_id", "patch_id"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "stack_tags",
        sa.Column("stack_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("author", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.PrimaryKeyConstraint("stack_id", "name", name="pk_stack_tags"),
        sa.ForeignKeyConstraint(
            ["stack_id", "revision"],
            ["stack_revisions.stack_id", "stack_revisions.number"],
            name="fk_stack_tags_stack_id_revision",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("length(name) > 0", name=op.f("ck_stack_tags_name")),
    )


def downgrade() -> None:
    """Loses tags, sources, expiry dates, sketches and details. Removed stacks stay, under names that say so."""
    op.drop_table("stack_tags")
    _rebuild_members(_listed_columns(), _to_lists)
    op.create_index("ix_stack_members_patch_id", "stack_members", ["patch_id"])
    op.execute("UPDATE stack_revisions SET action = 'restore' WHERE action = 'checkout'")
    op.execute("UPDATE stack_revisions SET action = 'apply' WHERE action IN ('merge', 'supersede', 'import')")
    op.execute("UPDATE stack_revisions SET action = 'clear' WHERE action = 'drop'")
    table = _stack_revisions(ACTIONS_NOW)
    table.append_column(sa.Column("details", sa.Text(), nullable=False, server_default="{}"))
    with op.batch_alter_table("stack_revisions", copy_from=table) as batch:
        batch.drop_constraint(op.f("ck_stack_revisions_action"), type_="check")
        batch.create_check_constraint(op.f("ck_stack_revisions_action"), sa.text(ACTIONS_BEFORE))
        batch.drop_column("details")
    op.execute("UPDATE stacks SET name = name || ' (removed, ' || id || ')' WHERE removed_at IS NOT NULL")
    op.drop_index("uq_stacks_name", "stacks")
    stacks = _stacks(unique=False)
    stacks.append_column(sa.Column("removed_at", sa.String(32)))
    with op.batch_alter_table("stacks", copy_from=stacks) as batch:
        batch.drop_column("removed_at")
        batch.create_unique_constraint("uq_stacks_name", ["name"])
    op.drop_column("sites", "key_sketch")
    op.drop_index("ix_patches_removed_at_created_at", "patches")
    op.drop_index("ix_patches_expires_at", "patches")
    op.drop_column("patches", "expires_at")
    op.drop_column("patches", "source")


def _stacks(unique: bool = True) -> sa.Table:
    return sa.Table(
        "stacks",
        sa.MetaData(),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("base_id", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stacks"),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"], name="fk_stacks_base_id"),
        *([sa.UniqueConstraint("name", name="uq_stacks_name")] if unique else []),
        sa.CheckConstraint("revision >= 0", name="ck_stacks_revision"),
        sa.CheckConstraint("length(name) > 0", name="ck_stacks_name"),
    )


def _stack_revisions(actions: str) -> sa.Table:
    return sa.Table(
        "stack_revisions",
        sa.MetaData(),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("stack_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Integer()),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("author", sa.Text()),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("message", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_stack_revisions"),
        sa.ForeignKeyConstraint(["stack_id"], ["stacks.id"], name="fk_stack_revisions_stack_id", ondelete="CASCADE"),
        sa.UniqueConstraint("stack_id", "number", name="uq_stack_revisions_stack_id_number"),
        sa.CheckConstraint(actions, name="ck_stack_revisions_action"),
        sa.CheckConstraint(
            "(number = 0 AND parent IS NULL) OR (number > 0 AND parent < number)",
            name="ck_stack_revisions_parent",
        ),
        sa.Index("ix_stack_revisions_created_at", "created_at"),
    )


def _interval_columns() -> list[sa.schema.SchemaItem]:
    revisions = ["stack_revisions.stack_id", "stack_revisions.number"]
    return [
        sa.Column("stack_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("added_in", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("patch_id", sa.String(64), nullable=False),
        sa.Column("removed_in", sa.Integer()),
        sa.PrimaryKeyConstraint("stack_id", "added_in", "patch_id", name="pk_stack_members"),
        sa.ForeignKeyConstraint(["patch_id"], ["patches.id"], name="fk_stack_members_patch_id"),
        sa.ForeignKeyConstraint(
            ["stack_id", "added_in"], revisions, name="fk_stack_members_stack_id_added_in", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["stack_id", "removed_in"], revisions, name="fk_stack_members_stack_id_removed_in"),
        sa.CheckConstraint("removed_in > added_in", name=op.f("ck_stack_members_interval")),
    ]


def _listed_columns() -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("patch_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("revision_id", "patch_id", name="pk_stack_members"),
        sa.ForeignKeyConstraint(
            ["revision_id"], ["stack_revisions.id"], name="fk_stack_members_revision_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["patch_id"], ["patches.id"], name="fk_stack_members_patch_id"),
    ]


Row = dict[str, object]


def _rebuild_members(columns: list[sa.schema.SchemaItem], convert: Callable[[sa.Connection], list[Row]]) -> None:
    """Replace ``stack_members`` by a table of *columns* with the rows that *convert* makes of the old one's."""
    rows = convert(op.get_bind())
    op.drop_table("stack_members")  # its indexes go with it
    table = op.create_table("stack_members", *columns)
    if rows:
        op.bulk_insert(table, rows)


def _to_intervals(connection: sa.Connection) -> list[Row]:
    """One row a stay: from the revision that added the patch to the one that took it off."""
    rows: list[Row] = []
    staying: dict[str, Row] = {}
    stack = None
    query = "SELECT id, stack_id, number FROM stack_revisions ORDER BY stack_id, number"
    for revision_id, stack_id, number in connection.execute(sa.text(query)).all():
        if stack_id != stack:
            staying, stack = {}, stack_id
        listed = sa.text("SELECT patch_id FROM stack_members WHERE revision_id = :id ORDER BY patch_id")
        members = list(connection.execute(listed, {"id": revision_id}).scalars())
        for patch_id in staying.keys() - set(members):
            staying.pop(patch_id)["removed_in"] = number
        for patch_id in members:
            if patch_id not in staying:
                row: Row = {"stack_id": stack_id, "added_in": number, "patch_id": patch_id, "removed_in": None}
                staying[patch_id] = row
                rows.append(row)
    return rows


def _to_lists(connection: sa.Connection) -> list[Row]:
    """One row for each member of each revision."""
    query = """
        SELECT r.id, m.patch_id FROM stack_revisions r JOIN stack_members m ON m.stack_id = r.stack_id
        AND m.added_in <= r.number AND (m.removed_in IS NULL OR m.removed_in > r.number) ORDER BY r.id, m.patch_id
    """
    return [{"revision_id": row[0], "patch_id": row[1]} for row in connection.execute(sa.text(query))]
