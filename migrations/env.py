"""Alembic environment: the index database that `lumina_vault.index.migrate` names."""

import sqlalchemy as sa
from alembic import context

from lumina_vault.index.schema import metadata

engine = sa.create_engine(f"sqlite:///{context.config.attributes['index_path']}", poolclass=sa.pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
