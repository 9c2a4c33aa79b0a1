"""Run the Alembic migrations, from a checkout or from the installed wheel."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.config import Config


def _directory() -> str:
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    installed = os.path.join(package, "_migrations")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(package), "migrations")


def _config(path: str) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", _directory().replace("%", "%%"))
    config.attributes["index_path"] = path
    return config


def upgrade(path: str) -> None:
    """Bring the index at `path` to the newest revision."""
    from alembic import command

    command.upgrade(_config(path), "head")


def known() -> set[str]:
    """Revisions that this version knows."""
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(_config("")).walk_revisions()}
