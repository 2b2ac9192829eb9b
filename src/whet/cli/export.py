"""``whet export``: a model as a file for a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from whet.cli import options
from whet.cli.endings import REFUSED, Ending
from whet.cli.quantities import Shape
from whet.cli.screen import Screen


@click.command(short_help="A model as a file for a runtime.")
@options.from_module
@click.option("-o", "--out", required=True, metavar="FILE", help="The file to write.")
@click.option("--format", "format_name", default="onnx", show_default=True, metavar="NAME", help="onnx is the one format of this version.")
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
@options.standard
def command(screen: Screen, model: str, weights: str | None, shapes: Sequence[Shape], out: str, format_name: str, force: bool) -> None:
    """Write MODEL, which may be an artifact or package.module:callable, as one file for a runtime.

    Session options that the runtime must be given, so that it computes what was measured, are told.

    \b
    whet export out/best -o small.onnx
    whet export my_models.resnet:resnet20 --weights resnet20.pt \\
        --input-shape 1,3,32,32 -o resnet20.onnx
    """
    import whet
    from whet.cli.models import model_of
    from whet.compress.report.numbers import BYTES, number

    place = options.writable(Path(out))
    if place.is_file() and not force:
        raise Ending(f"write {place}: it exists. use --force to replace it", REFUSED)
    with screen.working():
        graph = whet.load(model_of(model, weights, shapes))
        whet.export(graph, place, format=format_name)
    files = [path for path in (place, place.with_name(f"{place.name}.data")) if path.is_file()]
    size, told = sum(path.stat().st_size for path in files), dict(graph.session_options)
    if screen.as_json:
        return screen.document({"files": list(map(str, files)), "size_bytes": size, "session_options": told})
    screen.facts({"written": ", ".join(map(str, files)), "size": number(size, BYTES)})
    for name, value in told.items():
        screen.line(f"give the runtime the session option {name} = {value}", "yellow")
