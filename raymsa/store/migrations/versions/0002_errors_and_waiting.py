"""A run is chosen by its error on valid, whatever the metric; and it says how long it waited for its clips."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE runs RENAME COLUMN valid_mae TO valid_error")  # both databases know this sentence
    op.add_column("runs", sa.Column("data_wait", sa.Double))
