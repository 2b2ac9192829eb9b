"""``whet apply``: do a technique, or a recipe, to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whet.cli import options
from whet.cli.languages import show_applied
from whet.cli.quantities import Shape
from whet.cli.screen import Screen
from whet.cli.technique_flags import TechniqueCommand, names
from whet.cli.words import counted

if TYPE_CHECKING:
    from whet.core.inventory import Inventory


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    first = [] if ctx.params.get("words") else [name for name in names() if name.startswith(incomplete)]
    return [*map(CompletionItem, first), CompletionItem(incomplete, type="file")]


@click.command(cls=TechniqueCommand, short_help="Do one technique or a recipe.")
@click.argument("words", nargs=-1, metavar="TECHNIQUE MODEL", shell_complete=_complete)
@click.option("--recipe", metavar="FILE", help="Do the steps of a recipe (TOML) in place of one technique; then give MODEL alone.")
@click.option("--to", "layers", multiple=True, metavar="PATTERN",
              help="Layers to change: a name, a pattern with *, or op:Conv.  [default: all]")  # fmt: skip
@click.option("--except", "exclude", multiple=True, metavar="PATTERN", help="Layers to leave as they are.")
@options.calibration
@options.target
@click.option("-o", "--out", required=True, metavar="FOLDER", help="Where model.onnx and whet.json go.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there already.")
@options.weights
@options.input_shape
@options.standard
def command(screen: Screen, words: tuple[str, ...], recipe: str | None, layers: tuple[str, ...], exclude: tuple[str, ...],
            calibration: str | None, target: str, out: str, force: bool, weights: str | None, shapes: Sequence[Shape],
            values: Mapping[str, Any]) -> None:  # fmt: skip
    """Do one technique, or the steps of a recipe, to MODEL and write the result as an artifact: the model and its manifest.

    MODEL is an .onnx file, an artifact's folder, package.module:callable, or the folder of a language model (config.json and
    safetensors), which is calibrated with text and worked on block by block. The folder is written whole or not at all. What was
    interrupted goes on where it was: behind the last block of a language model, behind the last layer that was learned of a graph.

    \b
    whet apply static model.onnx --calibration calib.npz --ranges mse -o out/
    whet apply --recipe recipe.toml model.onnx --calibration calib.npz -o out/
    whet apply gptq ./llama-dir --bits 4 --group 128 --calibration a.txt -o out/
    """
    import whet
    from whet.cli.models import model_of
    from whet.compress.artifacts import read_artifact

    name, chosen = _asked(words, recipe, layers, exclude, values)
    place = options.free_folder(out, force=force)
    with screen.working():
        source = model_of(name, weights, shapes, calibration)
        made = whet.apply(source, chosen, calibration=calibration, target=target, out=place)
        before, after, artifact = whet.inspect(source), whet.inspect(made), read_artifact(place)
    if screen.as_json:
        return screen.document({"out": str(place), "id": artifact.artifact_id, **artifact.to_plain()})
    if artifact.format == "checkpoint":
        return show_applied(screen, place, before, after)
    # Weights may lie in a file beside the model's own.
    _show(screen, place, max(before.file_bytes or 0, before.weight_bytes), artifact.size_bytes, after)


def _asked(words: Sequence[str], recipe: str | None, layers: tuple[str, ...], exclude: tuple[str, ...],
           given: Mapping[str, Any]) -> tuple[str, Any]:  # fmt: skip
    """(the model, the recipe or step)."""
    from whet.core.document import FrozenMap
    from whet.core.recipe import Step

    if recipe is not None:
        if layers or exclude:
            raise click.UsageError("--to and --except go with a technique; in a recipe each step has its own")
        if len(words) != 1:
            raise click.UsageError("with --recipe give MODEL and nothing else" if words else "MODEL is missing")
        from whet.compress.recipes import as_recipe

        return words[0], as_recipe(Path(recipe))
    if len(words) != 2:
        missing = "TECHNIQUE and MODEL are missing" if not words else f"give TECHNIQUE MODEL, not {' '.join(words)!r}"
        raise click.UsageError(f"{missing}; the techniques are {', '.join(names())}")
    if words[0] not in names():
        raise click.UsageError(f"there is no technique {words[0]!r}; the techniques are {', '.join(names())}")
    return words[1], Step(words[0], layers or ("*",), exclude, FrozenMap(given))



def _show(screen: Screen, place: Path, old: int, new: int, after: Inventory) -> None:
    from whet.compress.report.numbers import BYTES, TIMES, number

    kinds: dict[str, int] = {}
    for layer in after.layers:
        if layer.weight_shape:
            kinds[layer.weight_dtype] = kinds.get(layer.weight_dtype, 0) + 1
    stored = ", ".join(f"{dtype} in {counted(count, 'layer')}" for dtype, count in kinds.items())
    screen.facts({
        "written": str(place), "size": f"{number(old, BYTES)} -> {number(new, BYTES)} ({number(old / max(new, 1), TIMES)} smaller)",
        "weights": stored or "none",
    })  # fmt: skip
    screen.remark(f"what it does to accuracy and speed: whet compare ORIGINAL {place} --data eval.npz")
