"""Alembic's entry: run the migrations on the connection that ``rompatch.store.migrate`` hands over.

The connection is inside one explicit transaction already (BEGIN IMMEDIATE on SQLite), so that a failing migration
leaves the schema as it was. The options below say the same to Alembic for connections that are not.
"""

from __future__ import annotations

from alembic import context

from rompatch.store.schema import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Migrations run through rompatch: open the store with any rompatch command and it is upgraded.")

context.configure(
    connection=connection,
    target_metadata=metadata,
    transactional_ddl=True,
    transaction_per_migration=True,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
