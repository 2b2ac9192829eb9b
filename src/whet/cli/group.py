"""The command ``whet``: its subcommands, and how each of them ends.

Exit codes: 0 done; 1 failed, which is a fault of Whet's; 2 wrong usage, or an input that was refused; 3 refused by a gate; 130 stopped
with Ctrl-C. Nothing but --verbose shows a traceback.
"""

from __future__ import annotations

import errno
import importlib
import shlex
import traceback
from typing import Any

import click

from whet import __version__
from whet.cli.endings import FAILED, REFUSED, STOPPED, Ending
from whet.core.errors import WhetError

COMMANDS = ("inspect", "profile", "plan", "apply", "compare", "explain", "optimize", "export", "run", "report", "targets", "techniques")
_TYPED, _VERBOSE = "whet.typed", "whet.verbose"
# What the system says of a path that the user gave, where the library did not say it first.
_OF_THE_PLACE = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOSPC, errno.EDQUOT,
})  # fmt: skip


class Whet(click.Group):
    """Imports a command's file when the command is asked for, and turns every way of failing into one message and a code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"whet.cli.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Click shows an ``Ending`` and exits with its code; a reader that went away (EPIPE) is its business too."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except WhetError as error:
            _show_traceback(ctx)
            raise Ending(str(error), REFUSED) from error
        except KeyboardInterrupt as error:
            raise Ending("stopped; nothing was written", STOPPED) from error
        except OSError as error:
            if error.errno not in _OF_THE_PLACE:
                raise _failed(ctx, error) from error
            _show_traceback(ctx)
            why = (error.strerror or str(error)).lower()
            raise Ending(f"{why}: {error.filename or 'the disk'}. choose another place", REFUSED) from error
        except Exception as error:
            raise _failed(ctx, error) from error


def typed(ctx: click.Context) -> str:
    """The command line as it was typed, to be pasted into a shell again."""
    return shlex.join(["whet", *ctx.meta.get(_TYPED, ())])


def set_verbose(ctx: click.Context) -> None:
    """From now on a failure shows its traceback."""
    ctx.meta[_VERBOSE] = True


def _failed(ctx: click.Context, error: Exception) -> Ending:
    hint = "" if _show_traceback(ctx) else " (this is a fault of Whet's; --verbose shows where)"
    return Ending(f"failed: {type(error).__name__}: {error}{hint}", FAILED)


def _show_traceback(ctx: click.Context) -> bool:
    if ctx.meta.get(_VERBOSE):
        click.echo(traceback.format_exc(), err=True, nl=False)
    return bool(ctx.meta.get(_VERBOSE))


@click.group(cls=Whet, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="whet", message="%(prog)s %(version)s")
def main() -> None:
    """Make a trained model fit an edge device, and prove that it still does its job.

    \b
    whet inspect model.onnx
    whet optimize model.onnx --data eval.npz --max-drop 1% -o out/
    """
