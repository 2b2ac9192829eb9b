"""``whet export``: a model as a file for a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whet.cli import options
from whet.cli.endings import REFUSED, Ending
from whet.cli.languages import show_exported
from whet.cli.quantities import Shape
from whet.cli.screen import Screen

if TYPE_CHECKING:
    from whet.compress.checkpoint import Checkpoint


@click.command(short_help="A model as a file for a runtime.")
@options.from_module
@click.option("-o", "--out", required=True, metavar="PATH", help="The file or folder to write.")
@click.option("--to", "--format", "format_name", default="onnx", show_default=True, metavar="NAME",
              help="onnx; for language models also gguf (llama.cpp) and hf (transformers).")  # fmt: skip
@click.option("--kind", default="auto", show_default=True, metavar="NAME",
              help="Of gguf: auto keeps codes as they are, q4_k_m and the like round to llama.cpp's mixes.")  # fmt: skip
@click.option("--accuracy-level", type=click.Choice(("0", "1", "4")), default="4", show_default=True,
              help="Of a language model in onnx: 4 rounds what packed layers read to int8; 0 and 1 compute in float32, "
                   "slowly.")  # fmt: skip
@click.option("--check/--no-check", default=True, show_default=True,
              help="Ask a language model and its export the same tokens, and tell the difference.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
@options.standard
def command(screen: Screen, model: str, weights: str | None, shapes: Sequence[Shape], out: str, format_name: str, kind: str,
            accuracy_level: str, check: bool, force: bool) -> None:  # fmt: skip
    """Write MODEL, which may be an artifact, a language model's folder or package.module:callable, for a runtime.

    Session options that the runtime must be given, so that it computes what was measured, are told. A language model becomes a folder
    (onnx, hf) or a .gguf file, from the codes themselves wherever the format holds them; what is not exact is told. An encoder (BERT)
    becomes a folder.

    \b
    whet export out/best -o small.onnx
    whet export ./llama-4bit --to gguf -o llama.gguf
    whet export my_models.resnet:resnet20 --weights resnet20.pt \\
        --input-shape 1,3,32,32 -o resnet20.onnx
    """
    import whet
    from whet.cli.models import model_of
    from whet.compress.bodies import checkpoint_in
    from whet.compress.report.numbers import BYTES, number

    place = options.writable(Path(out))
    if place.is_file() and not force:
        raise Ending(f"write {place}: it exists. use --force to replace it", REFUSED)
    language = checkpoint_in(model)
    if language is not None:
        return _language(screen, language, place, format=format_name, kind=kind, accuracy_level=int(accuracy_level), check=check)
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


def _language(screen: Screen, model: Checkpoint, place: Path, **asked: Any) -> None:
    from whet.compress.export import export_language

    with screen.working():
        found = export_language(model, place, **asked)
    show_exported(screen, place, asked["format"], found)
