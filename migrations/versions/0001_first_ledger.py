"""The first ledger: bases, patches, sites, stacks and their revisions, verifications and scores, settings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bases",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("model_type", sa.Text(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("tokenizer_hash", sa.Text(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_bases"),
        sa.CheckConstraint("length(id) = 64", name=op.f("ck_bases_id")),
    )
    op.create_table(
        "patches",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("base_id", sa.String(64), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_key", sa.Text(), nullable=False),
        sa.Column("template", sa.Text(), nullable=False),
        sa.Column("relation", sa.Text()),
        sa.Column("target_new", sa.Text(), nullable=False),
        sa.Column("target_true", sa.Text()),
        sa.Column("header", sa.Text(), nullable=False),
        sa.Column("file_size", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("author", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("measurements", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.String(32)),
        sa.PrimaryKeyConstraint("id", name="pk_patches"),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"], name="fk_patches_base_id"),
        sa.CheckConstraint("length(id) = 64", name=op.f("ck_patches_id")),
        sa.CheckConstraint("file_size > 0", name=op.f("ck_patches_file_size")),
    )
    op.create_index("ix_patches_base_id", "patches", ["base_id"])
    op.create_index("ix_patches_subject_key", "patches", ["subject_key"])
    op.create_index("ix_patches_created_at", "patches", ["created_at"])
    op.create_table(
        "sites",
        sa.Column("patch_id", sa.String(64), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("parameter", sa.Text(), nullable=False),
        sa.Column("shape", sa.Text(), nullable=False),
        sa.Column("tensor_sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("patch_id", "n", name="pk_sites"),
        sa.ForeignKeyConstraint(["patch_id"], ["patches.id"], name="fk_sites_patch_id", ondelete="CASCADE"),
        sa.CheckConstraint("n >= 0 AND layer >= 0", name=op.f("ck_sites_numbers")),
    )
    op.create_index("ix_sites_parameter", "sites", ["parameter"])
    _create_stacks()
    _create_verifications()
    op.create_table(
        "settings",
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_settings"),
    )


def _create_stacks() -> None:
    op.create_table(
        "stacks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("base_id", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stacks"),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"], name="fk_stacks_base_id"),
        sa.UniqueConstraint("name", name="uq_stacks_name"),
        sa.CheckConstraint("revision >= 0", name=op.f("ck_stacks_revision")),
        sa.CheckConstraint("length(name) > 0", name=op.f("ck_stacks_name")),
    )
    op.create_table(
        "stack_revisions",
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
        sa.CheckConstraint(
            "action IN ('create', 'apply', 'revert', 'clear', 'restore')", name=op.f("ck_stack_revisions_action")
        ),
        sa.CheckConstraint(
            "(number = 0 AND parent IS NULL) OR (number > 0 AND parent < number)",
            name=op.f("ck_stack_revisions_parent"),
        ),
    )
    op.create_index("ix_stack_revisions_created_at", "stack_revisions", ["created_at"])
    op.create_table(
        "stack_members",
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("patch_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("revision_id", "patch_id", name="pk_stack_members"),
        sa.ForeignKeyConstraint(
            ["revision_id"], ["stack_revisions.id"], name="fk_stack_members_revision_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["patch_id"], ["patches.id"], name="fk_stack_members_patch_id"),
    )
    op.create_index("ix_stack_members_patch_id", "stack_members", ["patch_id"])


def _create_verifications() -> None:
    op.create_table(
        "verifications",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("patch_id", sa.String(64)),
        sa.Column("revision_id", sa.Integer()),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("suite_source", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("prompts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_verifications"),
        sa.ForeignKeyConstraint(["patch_id"], ["patches.id"], name="fk_verifications_patch_id"),
        sa.ForeignKeyConstraint(["revision_id"], ["stack_revisions.id"], name="fk_verifications_revision_id"),
    )
    op.create_index("ix_verifications_patch_id", "verifications", ["patch_id"])
    op.create_index("ix_verifications_created_at", "verifications", ["created_at"])
    op.create_table(
        "scores",
        sa.Column("verification_id", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(8), nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("value", sa.Float()),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("verification_id", "phase", "metric", name="pk_scores"),
        sa.ForeignKeyConstraint(
            ["verification_id"], ["verifications.id"], name="fk_scores_verification_id", ondelete="CASCADE"
        ),
        sa.CheckConstraint("phase IN ('pre', 'post')", name=op.f("ck_scores_phase")),
        sa.CheckConstraint("n >= 0", name=op.f("ck_scores_n")),
    )


def downgrade() -> None:
    for table in (
        "settings",
        "scores",
        "verifications",
        "stack_members",
        "stack_revisions",
        "stacks",
        "sites",
        "patches",
        "bases",
    ):
        op.drop_table(table)
