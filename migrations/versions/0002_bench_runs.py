"""Benchmark runs and their results, record by record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bench_runs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("base_id", sa.String(64), nullable=False),
        sa.Column("benchmark", sa.String(32), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_bench_runs"),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"], name="fk_bench_runs_base_id"),
        sa.UniqueConstraint("name", name="uq_bench_runs_name"),
        sa.CheckConstraint("length(id) = 64", name=op.f("ck_bench_runs_id")),
        sa.CheckConstraint("length(name) > 0", name=op.f("ck_bench_runs_name")),
    )
    op.create_index("ix_bench_runs_created_at", "bench_runs", ["created_at"])
    op.create_table(
        "bench_results",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("case_id", sa.BigInteger()),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("error_kind", sa.String(64)),
        sa.Column("error", sa.Text()),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("measures", sa.Text(), nullable=False),
        sa.Column("measurements", sa.Text(), nullable=False),
        sa.Column("prompts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position", name="pk_bench_results"),
        sa.ForeignKeyConstraint(["run_id"], ["bench_runs.id"], name="fk_bench_results_run_id", ondelete="CASCADE"),
        sa.CheckConstraint("position >= 0", name=op.f("ck_bench_results_position")),
        sa.CheckConstraint(
            "(status = 'scored' AND error IS NULL) OR (status = 'failed' AND error IS NOT NULL)",
            name=op.f("ck_bench_results_status"),
        ),
    )


def downgrade() -> None:
    op.drop_table("bench_results")
    op.drop_table("bench_runs")
