"""The command `vault`: its verbs, and the one place where an error becomes an exit status."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from lumina_vault import __version__
from lumina_vault.cli import browse, keys, restore, snapshot, upkeep
from lumina_vault.cli.render import warn
from lumina_vault.errors import VaultError

app = typer.Typer(
    name="vault",
    help="Incremental, deduplicated, verifiable snapshots of a whole stack.",
    epilog="Exit status: 0 done, 1 failed, 2 usage, 3 something was left out, 10 no such vault, 11 locked, "
    "12 wrong passphrase or key, 13 damage found, 14 newer format, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"vault {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for module in (snapshot, restore, browse, upkeep, keys):
    module.register(app)


class _Interrupted(BaseException):
    """Ctrl-C, or a stop from systemd or Docker. Not KeyboardInterrupt, which typer would answer in its own words."""


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Interrupted


def main() -> NoReturn:
    """Entry point of `vault`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    try:
        app()
    except VaultError as error:
        warn(str(error))
        sys.exit(error.exit_code)
    except (_Interrupted, KeyboardInterrupt):
        warn("interrupted; what was stored or restored so far is whole, and the same command goes on from there")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        warn(f"{where}{error.strerror or error}")
        sys.exit(1)
    except MemoryError:
        warn("out of memory; nothing was committed")
        sys.exit(1)
    sys.exit(0)
