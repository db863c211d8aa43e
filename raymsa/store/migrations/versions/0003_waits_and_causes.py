"""Tasks wait for tasks of any job, are paused and tried again later; runs say where they are and how long still."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    _tasks()
    _waits()
    for column in (
        sa.Column("failures", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("cause", sa.Text),
        sa.Column("not_before", sa.Double),
        sa.Column("place", sa.Text),
        sa.Column("left_s", sa.Double),
        sa.Column("heard_at", sa.Double),
    ):
        op.add_column("runs", column)


def _tasks() -> None:
    for column in ("not_before", "deadline"):
        op.add_column("tasks", sa.Column(column, sa.Double))
    for column in ("asked", "cause", "said"):
        op.add_column("tasks", sa.Column(column, sa.Text))
    op.execute("UPDATE tasks SET asked = 'cancelled' WHERE cancel_requested")
    op.drop_column("tasks", "cancel_requested")
    op.create_index("ix_tasks_late", "tasks", ["state", "deadline"])


def _waits() -> None:
    op.create_table(
        "waits",
        sa.Column("task_id", sa.Integer, nullable=False),
        sa.Column("after_id", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_waits_task_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["after_id"], ["tasks.id"], name="fk_waits_after_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "after_id", name="pk_waits"),
    )
    op.create_index("ix_waits_after_id", "waits", ["after_id"])
    # until now, a task waited for the one before it in its job
    op.execute(
        "INSERT INTO waits (task_id, after_id) SELECT late.id, early.id FROM tasks AS late "
        "JOIN tasks AS early ON early.job_id = late.job_id AND early.seq = late.seq - 1"
    )
