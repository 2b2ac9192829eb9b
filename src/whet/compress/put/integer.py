"""Static quantisation in the graph: QuantizeLinear and DequantizeLinear where the target's runtime fuses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from whet.compress.edit import Editor
from whet.compress.fold import only_reader
from whet.compress.grid import Array, Grid, Quantised, from_range, quantise, quantise_bias, scale_for_bias, weight_grid
from whet.compress.put.sites import REARRANGERS, WEIGHTED, Site, is_mover, pads_with_constant, pads_with_zero, readers, vanishes
from whet.compress.put.storage import put_folded, stored_codes
from whet.compress.technique import Change
from whet.compress.weights import Slot, array, constant, rows_first, slots
from whet.core.target import Target

_ROUNDED_BY_THE_RUNTIME = frozenset({"Conv", "ConvTranspose", "Gemm"})


def put_integer(found: Mapping[str, Site], changes: Mapping[str, Change], target: Target, editor: Editor) -> None:
    """Let the sites compute in integers, with the grids and weights of ``changes`` (by the name of the node)."""
    fused = {node for node in editor.graph if _would_fuse(node, target)}  # by an earlier step, or as the model came
    grids = _grids(found, changes)
    _through_movers(editor.graph, grids, found, target)
    simulated = {site.node for name, site in found.items() if slots(site.node) and not _has_kernel(site, changes[name], grids, target)}
    for name, site in found.items():
        _put_constants(site, changes[name], site.node in simulated, grids, editor)
    needed = _needed(grids, found, target)
    for value, grid in needed.items():
        _without_upper_end(value, grid)
    dequantised = {value: _pair(value, grid, editor) for value, grid in needed.items()}
    for value, pair in dequantised.items():
        if _made_in_integers(value, grids, found, target):
            editor.take_output(value, pair)
            _redirect(value, pair, editor)
            _shapes_from_codes(pair, editor)
        else:  # made in float: only those who compute on codes read the pair
            _redirect(value, pair, editor, [node for node in value.consumers() if _reads_codes(node, found, grids, target)])
    for node in list(editor.graph):
        if node.op_type == "Pad":
            _pad_codes(node, editor)
        elif node.op_type == "MaxPool" and node.inputs[0] not in grids:
            _pool_before_relu(node, editor)
        elif (node.name not in found or node in simulated) and node not in fused and _would_fuse(node, target):
            _keep_in_float(node, editor)


def _grids(found: Mapping[str, Site], changes: Mapping[str, Change]) -> dict[ir.Value, Grid]:
    """One grid a tensor: the one of the most bits; of equals, who made the tensor decides, else its first reader."""
    grids: dict[ir.Value, Grid] = {}
    for name, site in found.items():
        for value, grid in zip(site.tensors, changes[name].inputs, strict=True):
            if grid is not None and value not in grids:
                grids[value] = _present_grid(value) or grid
            elif grid is not None and grid.bits > grids[value].bits and _present_grid(value) is None:
                grids[value] = grid
        made = changes[name].output
        if site.output is not None and made is not None:
            grids[site.output] = made
    return grids


def _present_grid(value: ir.Value) -> Grid | None:
    """The grid that an earlier step, or the model as it came, put the tensor on."""
    made = value.producer()
    if made is None or made.op_type != "DequantizeLinear" or constant(made, 0) is not None:
        return None
    scale, zero = constant(made, 1), constant(made, 2)
    if scale is None or zero is None or array(scale).ndim or array(scale).dtype != np.float32:
        return None
    codes, clip = array(zero), made.inputs[0].producer() if made.inputs[0] is not None else None
    highest = constant(clip, 2) if clip is not None and clip.op_type == "Clip" else None
    signed = codes.dtype.kind == "i"
    bits = 8 * codes.dtype.itemsize if highest is None else int(array(highest)).bit_length() + signed
    return Grid(bits, signed, array(scale).astype(np.float32), codes.astype(np.int32))


def _through_movers(graph: ir.Graph, grids: dict[ir.Value, Grid], found: Mapping[str, Site], target: Target) -> None:
    """A mover's output shares the grid of its input; and a rearranger's input that of its output, where nobody else reads the input.

    Before a pool the tensor stays float: onnxruntime's uint8 MaxPool away from integer convolutions is 20 times slower than
    its float one (docs/targets.md), while a Transpose or Reshape of codes moves a quarter of the bytes.
    """
    movers = [node for node in graph if is_mover(node, target)]
    outputs = {site.output for site in found.values()}
    for node in reversed(movers):
        before, after = node.inputs[0], node.outputs[0]
        if before in grids and after in grids and grids[after].bits > grids[before].bits and _present_grid(before) is None:
            grids[before] = widened(grids[before], grids[after].bits)
        if before is None or before in grids or before in outputs or len(list(before.uses())) > 1:
            continue
        if after in grids and node.op_type in REARRANGERS:
            grids[before] = _present_grid(before) or grids[after]
    for node in movers:
        before = node.inputs[0]
        if before in grids and any(reader.name in found for reader in readers(node.outputs[0], target)):
            grids[node.outputs[0]] = grids[before]


def widened(grid: Grid, bits: int) -> Grid:
    """A grid of one scale for the whole tensor, over the same range with more points."""
    low, high = (float((end - grid.zero_point) * grid.scale) for end in (grid.lowest, grid.highest))
    middle = grid.signed and not grid.zero_point.any()
    scale, zero = from_range(low, high, bits=bits, signed=grid.signed, symmetric=middle)
    return Grid(bits, grid.signed, scale, zero)


def _needed(grids: Mapping[ir.Value, Grid], found: Mapping[str, Site], target: Target) -> dict[ir.Value, Grid]:
    """The tensors that get a pair: the outputs of sites, and what sites and movers between them read."""
    outputs = {site.output for site in found.values()}
    read = {value for value in grids if any(_reads_codes(node, found, grids, target) for node in value.consumers())}
    return {value: grid for value, grid in grids.items() if value in outputs or (value in read and _present_grid(value) is None)}


def _reads_codes(node: ir.Node, found: Mapping[str, Site], grids: Mapping[ir.Value, Grid], target: Target) -> bool:
    return node.name in found or (is_mover(node, target) and node.outputs[0] in grids)


def _made_in_integers(value: ir.Value, grids: Mapping[ir.Value, Grid], found: Mapping[str, Site], target: Target) -> bool:
    if any(site.output is value for site in found.values()):
        return True
    made = value.producer()
    return made is not None and is_mover(made, target) and made.inputs[0] in grids


def _pair(value: ir.Value, grid: Grid, editor: Editor) -> ir.Value:
    """value -> QuantizeLinear -> DequantizeLinear. Fewer than 8 bits are codes of 8, clipped in between, so that kernels fuse as ever."""
    if grid.bits >= 8:
        return editor.dequantise(editor.quantise(value, grid), grid)
    wide = in_bytes(grid)
    codes = editor.quantise(value, wide)
    ends = [editor.constant(np.asarray(end), wide.dtype) for end in (grid.lowest, grid.highest)]
    return editor.dequantise(editor.node("Clip", [codes, *ends], like=codes, dtype=codes.dtype), wide)


def _without_upper_end(value: ir.Value, grid: Grid) -> None:
    """A Clip(0, x) in front of codes of fewer than 8 bits, whose own Clip ends no later, becomes a Relu: onnxruntime removes what the
    QuantizeLinear makes needless, and that one is of 8 bits and reaches farther than x."""
    clip = value.producer()
    if grid.bits >= 8 or clip is None or clip.op_type != "Clip" or not vanishes(clip):
        return
    top = constant(clip, 2)
    if top is None or np.rint(array(top) / grid.scale) + grid.zero_point >= grid.highest:
        clip.op_type = "Relu"
        clip.resize_inputs(1)


def in_bytes(grid: Grid) -> Grid:
    """The same points, as codes of 8 bits."""
    return replace(grid, bits=8)


def _redirect(value: ir.Value, pair: ir.Value, editor: Editor, chosen: list[ir.Node] | None = None) -> None:
    """Readers of ``value`` read the pair, but for the pair's own QuantizeLinear."""
    own = pair.producer()
    while own is not None and own.op_type != "QuantizeLinear":
        own = own.inputs[0].producer() if own.inputs[0] is not None else None
    nodes = list(value.consumers()) if chosen is None else chosen
    editor.redirect(value, pair, [node for node in nodes if node is not own])


def _shapes_from_codes(pair: ir.Value, editor: Editor) -> None:
    """Shape asks for no values: it reads the codes, so that no DequantizeLinear runs just for it."""
    dequantise = pair.producer()
    codes = dequantise.inputs[0] if dequantise is not None else None
    if codes is not None:
        editor.redirect(pair, codes, [node for node in pair.consumers() if node.op_type in ("Shape", "Size")])


def _put_constants(site: Site, change: Change, simulated: bool, grids: Mapping[ir.Value, Grid], editor: Editor) -> None:
    node = site.node
    if node.op_type in WEIGHTED and slots(node) and isinstance(change.weight, Quantised):
        if simulated:  # behind a DequantizeLinear they would come off their grid at every inference
            put_folded(node, slots(node)[0], change.weight, editor)
        else:
            _put_weight(node, change.weight, grids[site.tensors[0]], editor)
        return
    for index, value in enumerate(node.inputs):  # Add, Mul and Where want constants on a grid of the activations' type
        condition = node.op_type == "Where" and index == 0
        if value is not None and constant(node, index) is not None and not condition and array(value).dtype == np.float32:
            node.replace_input_with(index, _constant_on_grid(array(value), grids[site.tensors[0]], editor))


def _has_kernel(site: Site, change: Change, grids: Mapping[ir.Value, Grid], target: Target) -> bool:
    """Whether the runtime computes the operator in integers. Else it computes in float between its pairs, on the same numbers."""
    full = 8 * np.dtype(target.activation_dtype).itemsize
    touched = [*site.tensors, *(() if site.output is None else (site.output,))]
    if not all(grids[value].bits == full or grids[value].bits < 8 <= full for value in touched):
        return False
    grid = change.weight.grid if isinstance(change.weight, Quantised) else None
    return grid is None or (grid.bits <= 8 and not grid.block and not grid.zero_point.any())


def _put_weight(node: ir.Node, weight: Quantised, input_grid: Grid, editor: Editor) -> None:
    slot = slots(node)[0]
    stored = node.inputs[slot.index]
    bias = constant(node, slot.bias)
    assert stored is not None
    if bias is not None:
        weight = _fit_bias(weight, stored, slot, float(input_grid.scale), array(bias).ravel())
    codes, grid = stored_codes(weight, tuple(map(int, stored.const_value.shape)), slot)  # type: ignore[union-attr]
    node.replace_input_with(slot.index, editor.dequantise(_as_bytes(editor.constant(codes, grid.dtype), grid, editor), in_bytes(grid)))
    if bias is not None and slot.bias is not None:
        scale = (input_grid.scale * grid.scale).astype(np.float32)
        numbers = quantise_bias(array(bias).ravel(), scale)
        node.replace_input_with(slot.bias, _bias(numbers, scale, editor))


def _as_bytes(codes: ir.Value, grid: Grid, editor: Editor) -> ir.Value:
    """Codes of 2 or 4 bits -> Cast to int8, which the runtime folds at load; its kernels take no DequantizeLinear of narrower ones."""
    if grid.bits > 4:
        return codes
    return editor.node("Cast", [codes], attributes={"to": ir.DataType.INT8.value}, like=codes, dtype=ir.DataType.INT8)


def _fit_bias(weight: Quantised, stored: ir.Value, slot: Slot, input_scale: float, bias: Array) -> Quantised:
    """The weight with the scales that its bias needs: coarser where that would overflow int32, finer where all weights are 0.

    stored: the weight before it was rounded.
    """
    grid = weight.grid
    bounds = bias if grid.axis is not None else np.abs(bias).max(initial=0.0)
    dead = np.asarray(~weight.codes.any(axis=1 if grid.axis is not None else None))
    scale = scale_for_bias(grid.scale, input_scale, np.asarray(bounds, np.float32), dead)
    if np.array_equal(scale, grid.scale):
        return weight
    fitted = Grid(grid.bits, grid.signed, scale, grid.zero_point, grid.axis)
    changed = (scale != grid.scale) & ~dead
    again = quantise(rows_first(array(stored), slot).reshape(weight.codes.shape), fitted)
    # Channels that keep their scale keep their codes, which a technique may have chosen otherwise than by rounding.
    codes = np.where(changed.reshape(-1, 1) if grid.axis is not None else changed, again.codes, weight.codes)
    return Quantised(codes, fitted)


def _bias(numbers: Array, scale: Array, editor: Editor) -> ir.Value:
    """int32 codes -> DequantizeLinear; zero point 0 is the default and is left out."""
    attributes = {"axis": 0} if scale.ndim else {}
    inputs = [editor.constant(numbers), editor.constant(scale)]
    return editor.node("DequantizeLinear", inputs, attributes=attributes, dtype=ir.DataType.FLOAT)


def _constant_on_grid(numbers: Array, like: Grid, editor: Editor) -> ir.Value:
    grid = weight_grid(numbers, bits=max(like.bits, 8), symmetric=like.signed)
    return editor.dequantise(editor.constant(quantise(numbers, grid).codes, grid.dtype), grid)


def _pool_before_relu(pool: ir.Node, editor: Editor) -> None:
    """float x -> Relu -> MaxPool -> QuantizeLinear  ->  x -> MaxPool -> Relu -> QuantizeLinear: the same numbers.

    onnxruntime moves a QuantizeLinear up through MaxPool (QDQPropagationTransformer), whose uint8 kernel away from integer
    convolutions is 20 times slower than the float one. It does not move it through Relu, and drops the Relu afterwards.
    """
    relu = pool.inputs[0].producer() if pool.inputs[0] is not None else None
    after = only_reader(pool.outputs[0])
    if relu is None or relu.op_type != "Relu" or only_reader(relu.outputs[0]) is not pool or len(pool.outputs) > 1:
        return
    if after is None or after.op_type != "QuantizeLinear":
        return
    name, pool.name = pool.name or "", f"{pool.name}_replaced"
    pooled = editor.node("MaxPool", [relu.inputs[0]], name=name, attributes=dict(pool.attributes), dtype=ir.DataType.FLOAT)
    pooled.shape = pool.outputs[0].shape
    name, relu.name = relu.name or "", f"{relu.name}_replaced"
    editor.redirect(pool.outputs[0], editor.node("Relu", [pooled], name=name, dtype=ir.DataType.FLOAT, like=pooled))
    editor.remove(pool)
    editor.remove(relu)


def _would_fuse(node: ir.Node, target: Target) -> bool:
    """Whether an operator that is to stay in float stands as the runtime wants it for an integer kernel: all inputs from
    DequantizeLinear, and nothing but a QuantizeLinear (or a Relu that vanishes in it) behind it.

    Of a layer with weights the first input is enough: onnxruntime rounds float weights and biases that stand there to int8 itself, with
    one scale for the whole layer (core/optimizer/qdq_transformer/weight_bias_quantization.cc).
    """
    weighted = node.op_type in _ROUNDED_BY_THE_RUNTIME
    if (not weighted and node.op_type not in target.fused_ops) or node.op_type in target.moving_ops or len(node.outputs) != 1:
        return False
    after = only_reader(node.outputs[0])
    if after is not None and vanishes(after):
        after = only_reader(after.outputs[0])
    before = [value.producer() for value in (node.inputs[:1] if weighted else node.inputs) if value is not None]
    return (after is not None and after.op_type == "QuantizeLinear"
            and all(made is not None and made.op_type == "DequantizeLinear" for made in before))


def _keep_in_float(node: ir.Node, editor: Editor) -> None:
    """Max with the lowest float behind the operator: it changes nothing, and onnxruntime has no integer kernel for it.

    Between integer operators onnxruntime would fuse whatever it can, also what is slower in integers (a sliding AveragePool of 2x2
    between two convolutions: 268 us fused, 147 us so, 174 us all in float; x86 with VNNI, onnxruntime 1.31.1).
    """
    out = node.outputs[0]
    lowest = editor.constant(np.float32(np.finfo(np.float32).min))
    editor.redirect(out, editor.node("Max", [out, lowest], like=out, dtype=ir.DataType.FLOAT))


def _pad_codes(pad: ir.Node, editor: Editor) -> None:
    """DequantizeLinear -> Pad(0) -> QuantizeLinear on one grid  ->  Pad(zero point) on the codes.

    onnxruntime fuses no Pad, but its Pad runs on 8-bit integers as it is, on a quarter of the bytes.
    """
    before = pad.inputs[0].producer() if pad.inputs[0] is not None else None
    uses = [node for node, _ in pad.outputs[0].uses()]
    if before is None or before.op_type != "DequantizeLinear" or [node.op_type for node in uses] != ["QuantizeLinear"]:
        return
    (after,) = uses
    if array(before.inputs[2]).dtype.itemsize > 1:  # type: ignore[arg-type]  # onnxruntime's Pad knows no 16-bit integers
        return
    # Padding with another constant may leave the range, and so the grid, as it was: its padding is still no zero.
    if pads_with_constant(pad) and not pads_with_zero(pad):
        return
    if [after.inputs[1], after.inputs[2]] != [before.inputs[1], before.inputs[2]] or pad.outputs[0].is_graph_output():
        return
    inputs = [before.inputs[0], pad.inputs[1], before.inputs[2], *pad.inputs[3:]]
    name, pad.name = pad.name or "", f"{pad.name}_replaced"
    padded = editor.node("Pad", inputs, name=name, attributes=dict(pad.attributes), like=pad.outputs[0], dtype=before.inputs[0].dtype)  # type: ignore[union-attr]
    editor.redirect(after.outputs[0], padded)
    editor.remove(after)
    editor.remove(pad)
    if not before.outputs[0].uses() and not before.outputs[0].is_graph_output():
        editor.remove(before)
