"""The first tables. Written out, not taken from tables.py: this file stays as it is when that one changes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _jobs_and_tasks()
    _runs()
    _numbers_of_a_run()
    _events()


def _jobs_and_tasks() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(8), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("submitted_by", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("git_commit", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_name", "jobs", ["name"])
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("job_id", sa.String(8), nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("driver", sa.Text),
        sa.Column("lease_until", sa.Double),
        sa.Column("cancel_requested", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("error", sa.Text),
        _parent("tasks", "job_id", "jobs.id"),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint("job_id", "seq", name="uq_tasks_job_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tasks_claim", "tasks", ["state", sa.text("priority DESC"), "id"])


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("job_id", sa.String(8), nullable=False),
        sa.Column("task_id", sa.Integer),
        sa.Column("variant", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("group_key", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("spec_digest", sa.Text, nullable=False),
        sa.Column("data_digest", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("error", sa.Text),
        sa.Column("versions", sa.JSON),
        sa.Column("git_commit", sa.Text),
        sa.Column("wall_s", sa.Double, nullable=False),
        sa.Column("device_s", sa.Double, nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger),
        sa.Column("trainable_parameters", sa.BigInteger),
        sa.Column("steps_total", sa.BigInteger),
        sa.Column("step", sa.BigInteger),
        sa.Column("epoch", sa.BigInteger),
        sa.Column("best_epoch", sa.BigInteger),
        sa.Column("valid_mae", sa.Double),
        _parent("runs", "job_id", "jobs.id"),
        _parent("runs", "task_id", "tasks.id"),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    for column in ("job_id", "task_id", "group_key"):
        op.create_index(f"ix_runs_{column}", "runs", [column])


def _numbers_of_a_run() -> None:
    op.create_table(
        "steps",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("epoch", sa.BigInteger),
        sa.Column("at", sa.Double, nullable=False),
        _parent("steps", "run_id", "runs.id"),
        sa.PrimaryKeyConstraint("run_id", "step", "name", name="pk_steps"),
    )
    op.create_table(
        "finals",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        _parent("finals", "run_id", "runs.id"),
        sa.PrimaryKeyConstraint("run_id", "split", "name", name="pk_finals"),
    )
    op.create_table(
        "predictions",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("clip_id", sa.Text, nullable=False),
        sa.Column("label", sa.Double),
        sa.Column("score", sa.Double),
        sa.Column("text", sa.Text),
        sa.Column("parsed", sa.Boolean, nullable=False),
        sa.Column("in_range", sa.Boolean, nullable=False),
        _parent("predictions", "run_id", "runs.id"),
        sa.PrimaryKeyConstraint("run_id", "split", "clip_id", name="pk_predictions"),
    )
    op.create_table(
        "artifacts",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger),
        _parent("artifacts", "run_id", "runs.id"),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_artifacts"),
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("job_id", sa.Text),
        sa.Column("task_id", sa.Integer),
        sa.Column("run_id", sa.Text),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_job_id", "events", ["job_id"])


def _parent(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [target], name=f"fk_{table}_{column}", ondelete="CASCADE")
