"""Run by alembic: migrates over the connection it is given, inside that connection's transaction."""

from alembic import context

from raymsa.store.migrations import VERSION_TABLE
from raymsa.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite cannot alter a column in place
)
with context.begin_transaction():
    context.run_migrations()
