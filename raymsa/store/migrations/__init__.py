"""Bringing a store to the tables of this raymsa. Alembic is imported only when there is something to do.

A new version: change tables.py, add versions/000N_word.py by hand or with
`alembic.command.revision(config(connection), "word", autogenerate=True, rev_id="000N")`, and set HEAD.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"
FOLDER = Path(__file__).parent
VERSION_TABLE = "raymsa_version"  # not alembic's default: Optuna and MLflow use that one in the same database


def version(connection: Connection) -> str | None:
    """The version a store has; None when it has no raymsa tables."""
    # Not SQLAlchemy's inspector: what it builds for one answer takes longer than all that `raymsa list` asks.
    here = (
        "to_regclass(:table)"
        if connection.dialect.name == "postgresql"
        else "(SELECT 1 FROM sqlite_master WHERE name = :table)"
    )
    if connection.execute(text(f"SELECT {here}"), {"table": VERSION_TABLE}).scalar() is None:
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 (a constant)


def known() -> set[str]:
    """The versions this raymsa can migrate from."""
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory(str(FOLDER)).walk_revisions()}


def upgrade(connection: Connection, to: str = "head") -> None:
    """Migrate to a version inside the caller's transaction."""
    from alembic import command

    logging.getLogger("alembic").setLevel(logging.WARNING)  # says each step at INFO
    command.upgrade(config(connection), to)


def config(connection: Connection) -> Config:
    """Alembic's configuration, made here so that there is no alembic.ini to find, ship or edit."""
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(FOLDER).replace("%", "%%"))  # configparser reads % as a reference
    settings.attributes["connection"] = connection
    return settings
