"""``whet inspect``: what is inside a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from whet.cli import options
from whet.cli.quantities import Shape
from whet.cli.screen import Column, Screen
from whet.cli.words import counted, listed

if TYPE_CHECKING:
    from whet.compress.roofline import LayerTime
    from whet.core.inventory import Inventory, Layer

TOP = 12


@click.command(short_help="What is inside a model: layers, MACs, bytes, activations.")
@options.from_module
@click.option("--all", "every", is_flag=True, help=f"Every layer in the order of execution, not the {TOP} with most bytes.")
@click.option("--roofline", is_flag=True, help="The least time of each layer on this machine, and what bounds it.")
@options.threads
@options.standard
def command(screen: Screen, model: str, weights: str | None, shapes: Sequence[Shape], every: bool, roofline: bool,
            threads: int | None) -> None:  # fmt: skip
    """Show the layers of MODEL, its parameters, multiply-accumulates (MACs) and bytes, and where its activations are largest.

    MODEL is an .onnx file, an artifact's folder or package.module:callable. All figures are for one sample.

    \b
    whet inspect model.onnx
    whet inspect my_models.resnet:resnet20 --weights resnet20.pt \\
        --input-shape 1,3,32,32
    """
    import whet
    from whet.cli.models import model_of

    with screen.working():
        found = whet.inspect(model_of(model, weights, shapes))
        times = _least_times(found, threads) if roofline else None
    if screen.as_json:
        totals = {"parameters": found.parameters, "weight_bytes": found.weight_bytes, "macs": found.macs}
        least = {} if times is None else {"roofline": [each.to_plain() for each in times]}
        return screen.document({**found.to_plain(), **totals, **least})
    if not screen.quiet:
        _show_layers(screen, found, times, every)
        screen.gap()
    _show_totals(screen, found, times)


def _least_times(found: Inventory, threads: int | None) -> tuple[LayerTime, ...]:
    from whet.compress.roofline import least_times
    from whet.device.machine_limits import machine_limits

    return least_times(found, machine_limits(threads=threads))


def _show_layers(screen: Screen, found: Inventory, times: Sequence[LayerTime] | None, every: bool) -> None:
    from whet.compress.report.numbers import BYTES, COUNT, MICROSECONDS, number

    order = sorted(range(len(found.layers)), key=lambda at: -found.layers[at].weight_bytes)
    shown = range(len(found.layers)) if every else [at for at in order if found.layers[at].weight_bytes][:TOP]
    columns = [Column("layer", flexible=True), Column("operator"), Column("weights")]
    columns += [Column("MACs", right=True), Column("bytes", right=True)]
    if times is not None:
        columns += [Column("least", right=True), Column("bound by")]
    rows = []
    for at in shown:
        layer = found.layers[at]
        row = [layer.name, layer.op, _weight(layer), "-" if layer.macs is None else number(layer.macs, COUNT) if layer.macs else "",
               number(layer.weight_bytes, BYTES) if layer.weight_bytes else ""]  # fmt: skip
        if times is not None:
            row += [number(times[at].least_us, MICROSECONDS) if times[at].least_us else "", times[at].bound]
        rows.append(row)
    screen.table(columns, rows)
    if len(shown) < len(found.layers):
        rest = [layer for at, layer in enumerate(found.layers) if at not in set(shown)]
        left = sum(layer.weight_bytes for layer in rest)
        screen.remark(f"and {counted(len(rest), 'layer')} with {f'{number(left, BYTES)} of' if left else 'no'} weights (--all shows them)")


def _weight(layer: Layer) -> str:
    """ "64x3x3x3", and the dtype where it is another than float32."""
    sizes = "x".join(map(str, layer.weight_shape))
    return sizes if layer.weight_dtype in ("", "float32") else f"{sizes} {layer.weight_dtype}"


def _show_totals(screen: Screen, found: Inventory, times: Sequence[LayerTime] | None) -> None:
    from whet.compress.report.numbers import BYTES, COUNT, MICROSECONDS, number

    facts = {
        "layers": str(len(found.layers)), "parameters": number(found.parameters, COUNT), "weights": number(found.weight_bytes, BYTES),
        "MACs": number(found.macs, COUNT),
    }  # fmt: skip
    if found.file_bytes is not None:
        facts["file"] = number(found.file_bytes, BYTES)
    if found.peak_activation_bytes is not None:
        where = f", at {listed(list(found.peak_layers), 3)}" if found.peak_layers else ""
        facts["peak activations"] = f"{number(found.peak_activation_bytes, BYTES)}{where}"
    if times is not None:
        least = number(sum(each.least_us for each in times), MICROSECONDS)
        facts["least time"] = f"{least} (estimate: MACs or bytes at this machine's best rates)"
    screen.facts(facts)
    for note in found.notes:
        screen.remark(f"note: {note}")
