"""The arguments and flags that several commands share, each with one spelling and one meaning."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from whet.cli.endings import REFUSED, Ending
from whet.cli.group import set_verbose
from whet.cli.quantities import SECONDS, SHAPE, SHARE
from whet.cli.screen import Screen

Function = TypeVar("Function", bound=Callable[..., Any])

METRICS = ("accuracy", "top5", "f1", "auc", "mae", "rmse", "fidelity", "kl", "sqnr_db", "flips")

model = click.argument("model", metavar="MODEL")
weights = click.option("--weights", metavar="FILE", help="Weights of MODEL, where that is package.module:callable.")
input_shape = click.option("--input-shape", "shapes", type=SHAPE, multiple=True, metavar="[NAME=]1,3,32,32",
                           help="Shape of an example input, where MODEL is package.module:callable; once for each input.")  # fmt: skip
data = click.option("--data", metavar="PATH", help="Samples: .npz, .npy, .csv, .parquet or a folder; .txt or .jsonl for a language model.")
calibration = click.option("--calibration", metavar="PATH",
                           help="Samples to find ranges by; 100 to 300 are usual. Text for a language model.")  # fmt: skip
threads = click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads within an operator.  [default: every core]")
seconds = click.option("--seconds", type=SECONDS, default="2", show_default=True, metavar="TIME", help="How long latency is measured.")
confidence = click.option("--confidence", type=SHARE, default="0.95", show_default=True, metavar="SHARE",
                          help="How sure the upper end of the drop's interval must be.")  # fmt: skip


def target(function: Function) -> Function:
    """--target, which the shell completes."""
    return click.option("--target", default="host", show_default=True, metavar="NAME", shell_complete=complete_target,
                        help="A name that `whet targets` lists, or a TOML file.")(function)  # fmt: skip


def metric(function: Function) -> Function:
    """--metric, which the shell completes."""
    said = f"{', '.join(METRICS)}, or your own as module:function.  [default: accuracy with labels, else fidelity]"
    return click.option("--metric", metavar="NAME", shell_complete=_complete_metric, help=said)(function)


def standard(function: Callable[..., Any]) -> Callable[..., Any]:
    """--json, --quiet and --verbose, which reach the function as its first argument, a ``Screen``."""

    @click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout, and nothing else there.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks.")
    @click.option("-v", "--verbose", is_flag=True, help="Show warnings, and where a failure comes from.")
    @functools.wraps(function)
    def command(*, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> Any:
        if verbose:
            set_verbose(click.get_current_context())
        return function(Screen(as_json, quiet, verbose), **given)

    return command


def from_module(function: Function) -> Function:
    """MODEL with the two flags that a PyTorch model needs."""
    return model(weights(input_shape(function)))


def free_folder(path: str, *, force: bool) -> Path:
    """``path``, if an artifact may be written there. Ends with 2 where it would replace what is not ours, or ours without --force."""
    from whet.core.artifact import MANIFEST_NAME

    folder = writable(Path(path))
    if folder.exists() and not folder.is_dir():
        raise Ending(f"write the folder {folder}: there is a file of that name. choose another output folder", REFUSED)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if names and MANIFEST_NAME not in names:
        raise Ending(f"write the folder {folder}: it holds other things ({names[0]}). choose a new or empty folder", REFUSED)
    if names and not force:
        raise Ending(f"write the folder {folder}: it holds an artifact. use --force to replace it, or choose another folder", REFUSED)
    return folder


def writable(path: Path) -> Path:
    """``path``, if something may be written there, as far as can be told before the work: ends with 2 where it cannot."""
    above = path.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise Ending(f"write {path}: {above} is a file and not a directory. choose another place", REFUSED)
    if not os.access(path if path.is_dir() else above, os.W_OK | os.X_OK):
        raise Ending(f"write {path}: there is no permission to write in {path if path.is_dir() else above}. choose another place", REFUSED)
    return path


def complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from whet.device.targets import HOST, built_in_names

    return [name for name in (HOST, *built_in_names()) if name.startswith(incomplete)]


def _complete_metric(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in METRICS if name.startswith(incomplete)]
