"""The `loraxs` command: the same verbs as the pages, for scripts and servers.

One file a verb in `app.commands`; this one only puts them together and turns errors into one sentence and exit code 2.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

# Nothing here reports home, and nothing draws progress bars of its own.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from app import commands
from app.terminal import print_text, say
from loraxs_core.cache import CacheRemark
from loraxs_core.errors import WorkbenchError
from loraxs_core.progress import Cancellation

# Advice of libraries to other libraries, which the person at the terminal can do nothing about.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)(\.|$)")

INTERRUPTED = 130  # exit code
FAULT = 70  # exit code, EX_SOFTWARE of BSD's sysexits.h: Python's own 1 is what `verify` says of a base that does not fit

app = typer.Typer(
    name="loraxs",
    help="LoRA-XS Workbench: see the spectrum of every layer, choose ranks, know what it costs, race the methods.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
commands.register(app)


def _version(asked: bool) -> None:
    if asked:
        libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
        print_text(f"loraxs {version('loraxs-workbench')} ({libraries}, Python {sys.version.split()[0]})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and those it rests on.")
    ] = False,
) -> None:
    """LoRA-XS Workbench: see the spectrum of every layer, choose ranks, know what it costs, race the methods."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 2 for anything the user can mend (one sentence on standard error), 70 for a fault of
    this program (with its traceback), 130 interrupted."""
    warnings.showwarning = _show_warning(warnings.showwarning)
    try:
        _run(arguments)
    except Exception:
        traceback.print_exc()
        say("loraxs: this is a fault of the program, not of what you asked; please report it with the lines above.")
        sys.exit(FAULT)


def _run(arguments: list[str] | None) -> None:
    try:
        try:
            app(arguments, standalone_mode=True)
        finally:
            sys.stdout.flush()  # here, where a full disk behind it can still be said
    except WorkbenchError as error:
        say(f"loraxs: {error}")
        sys.exit(2)
    except (KeyboardInterrupt, Cancellation):
        say("loraxs: stopped.")
        sys.exit(INTERRUPTED)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # what Typer makes of Ctrl-C, without a word
            say("loraxs: stopped.")
        raise
    except BrokenPipeError:
        # The reader of a pipe went away (`loraxs inspect … | head`): not an error, and nothing more can be printed.
        _print_nothing_more()
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) or error.filename is not None:
            raise
        _print_nothing_more()
        say(f"loraxs: Cannot write the output: {error.strerror}; free some space or send it elsewhere.")
        sys.exit(2)


def _show_warning(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Remarks about the cache are for the person; what libraries warn of is printed as before."""

    def show(message: Warning | str, category: type[Warning], *details, **options) -> None:
        if issubclass(category, CacheRemark):
            say(f"loraxs: {message}")
        else:
            otherwise(message, category, *details, **options)

    return show


def _print_nothing_more() -> None:
    """What is still buffered for standard output goes nowhere, so that Python does not complain on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
