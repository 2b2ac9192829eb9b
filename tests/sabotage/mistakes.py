"""Deliberate mistakes, each as small and as plausible as the real ones: what to replace in which file, and the tests that must notice."""

from __future__ import annotations

from typing import NamedTuple

GRID, RANGES, FOLD = "compress/test_grid.py", "compress/test_ranges.py compress/test_statistics.py", "compress/test_fold.py"
STATIC, WEIGHT_ONLY = "compress/test_static.py", "compress/test_weight_only.py"
DYNAMIC, FLOAT16, APPLY = "compress/test_dynamic.py", "compress/test_float16.py", "compress/test_apply.py"
ARTIFACTS, FILES = "compress/test_artifacts.py", "device/test_files.py"


class Mistake(NamedTuple):
    """``old`` stands exactly once in src/whet/``file``. tests: files under tests/, with a -k expression where few of them are enough."""

    what: str
    file: str
    old: str
    new: str
    tests: str
    only: str = ""


MISTAKES = (
    # -- grid: rounding, ends, axes
    Mistake(
        "halves rounded up",
        "compress/grid.py",
        "    np.rint(codes, out=codes)\n",
        "    np.floor(codes + 0.5, out=codes)\n",
        GRID,
        "halves",
    ),
    Mistake(
        "multiplied by the scale",
        "compress/grid.py",
        "np.asarray(values, np.float32) / scale)",
        "np.asarray(values, np.float32) * scale)",
        GRID,
        "codes_and_values",
    ),
    Mistake(
        "zero point subtracted",
        "compress/grid.py",
        "codes += zero.astype(np.float32)",
        "codes -= zero.astype(np.float32)",
        GRID,
        "codes_and_values",
    ),
    Mistake(
        "one code too few in a range",
        "compress/grid.py",
        "scale = _positive((high32 - low32) / (highest - lowest))",
        "scale = _positive((high32 - low32) / (highest - lowest + 1))",
        GRID,
        "from_range or zero_lies or relu or weight_grids",
    ),
    Mistake(
        "range not widened to zero",
        "compress/grid.py",
        "low32 = np.minimum(np.asarray(low, np.float64), 0.0)",
        "low32 = np.asarray(low, np.float64)",
        GRID,
        "zero_lies",
    ),
    Mistake(
        "blocks shifted by one",
        "compress/grid.py",
        "starts = np.arange(0, weight.shape[axis], block)",
        "starts = np.arange(0, weight.shape[axis], block)\n        starts[1:] -= 1",
        GRID,
        "blocks_of_32",
    ),
    Mistake(
        "scale of the first block for all",
        "compress/grid.py",
        "scale = np.repeat(grid.scale, grid.block, axis).take(range(size), axis)",
        "scale = grid.scale.take([0] * size, axis)",
        GRID,
        "codes_and_values or blocks_of_32",
    ),
    Mistake(
        "no clipping",
        "compress/grid.py",
        "np.clip(codes, grid.lowest, grid.highest, out=codes).astype(kind)",
        "codes.astype(np.int64).astype(kind)",
        GRID,
        "halves or narrowest",
    ),
    Mistake(
        "bias truncated",
        "compress/grid.py",
        "np.rint(np.asarray(bias, np.float64) / np.asarray(scale, np.float64))",
        "np.trunc(np.asarray(bias, np.float64) / np.asarray(scale, np.float64))",
        GRID,
        "biases_lie",
    ),
    Mistake(
        "dead channels keep scale 1",
        "compress/grid.py",
        "np.where(dead & (size > 0), needed, np.maximum(weight_scale, needed))",
        "np.maximum(weight_scale, needed)",
        GRID,
        "dead",
    ),
    # -- statistics and ranges
    Mistake(
        "momentum turned round",
        "compress/statistics.py",
        "MOMENTUM * before[0] + (1 - MOMENTUM) * low",
        "(1 - MOMENTUM) * before[0] + MOMENTUM * low",
        RANGES,
        "moving_average",
    ),
    Mistake(
        "merged bins left in the wrong half",
        "compress/statistics.py",
        "self._merge(first=BINS // 2)",
        "self._merge(first=0)",
        RANGES,
        "in_the_bin",
    ),
    Mistake("width not doubled", "compress/statistics.py", "self.width *= 2", "self.width *= 1.5", RANGES, "in_the_bin or nothing_is_lost"),
    Mistake(
        "percentile on one side only",
        "compress/ranges.py",
        "share = (100.0 - percentile) / 200.0",
        "share = (100.0 - percentile) / 100.0",
        RANGES,
        "percentiles_agree",
    ),
    Mistake("outliers not counted in entropy", "compress/ranges.py", "reference[-1] += counts[last:].sum()", "", RANGES, "entropy"),
    Mistake(
        "zeros of a relu counted in entropy",
        "compress/ranges.py",
        "counts[zero] = min(counts[zero], counts[beside])",
        "",
        RANGES,
        "entropy",
    ),
    Mistake(
        "clipping costs nothing",
        "compress/ranges.py",
        "cost = np.where(inside & ~zero_bin, step * step / 12.0, outside**2)",
        "cost = np.where(inside & ~zero_bin, step * step / 12.0, 0.0)",
        RANGES,
        "mse",
    ),
    Mistake(
        "steps counted wrongly in mse",
        "compress/ranges.py",
        "step = (high - low) / (codes - 1)",
        "step = (high - low) / (codes - 1) ** 2",
        RANGES,
        "mse",
    ),
    # -- folding
    Mistake(
        "epsilon forgotten",
        "compress/fold.py",
        'np.sqrt(variance + float_attribute(norm, "epsilon", 1e-5))',
        "np.sqrt(variance)",
        FOLD,
        "float64 or precision",
    ),
    Mistake(
        "old bias not scaled",
        "compress/fold.py",
        "((old_bias - mean) * factor + beta)",
        "(old_bias - mean * factor + beta)",
        FOLD,
        "batch_norm",
    ),
    Mistake("mean forgotten", "compress/fold.py", "((old_bias - mean) * factor + beta)", "(old_bias * factor + beta)", FOLD, "batch_norm"),
    Mistake("sign of the gain lost", "compress/fold.py", "factor = gain / np.sqrt(", "factor = np.abs(gain) / np.sqrt(", FOLD, "float64"),
    Mistake(
        "folded although others read it",
        "compress/fold.py",
        "if len(uses) != 1 or value.is_graph_output():",
        "if not uses:",
        FOLD,
        "cannot or no_bias",
    ),
    Mistake(
        "beta for alpha",
        "compress/fold.py",
        "_set(node, 1, array(node.inputs[1]) * alpha, editor)",
        "_set(node, 1, array(node.inputs[1]) * beta, editor)",
        FOLD,
        "alpha",
    ),
    Mistake(
        "a column taken for a row",
        "compress/weights.py",
        "all(size == 1 for size in tuple(value.const_value.shape)[:-1])",
        "True",
        FOLD,
        "every_shape",
    ),
    Mistake(
        "sliding pools become global ones",
        "compress/fold.py",
        "kernel == shape[2:] and len(kernel) > 0",
        "len(kernel) == len(shape[2:]) > 0",
        FOLD,
        "pool",
    ),
    # -- placement of Q and DQ
    Mistake(
        "a pair between an operator and its relu",
        "compress/put/sites.py",
        'return node.op_type == "Relu" or',
        "return",
        STATIC,
        "structure",
    ),
    Mistake("movers keep two grids", "compress/put/integer.py", "grids[node.outputs[0]] = grids[before]", "pass", STATIC, "structure"),
    Mistake(
        "outputs of the graph stay in front of the pair",
        "compress/put/integer.py",
        "            editor.take_output(value, pair)\n            _redirect(value, pair, editor)\n",
        "            _redirect(value, pair, editor)\n",
        STATIC,
        "structure",
    ),
    Mistake(
        "padding with one becomes padding with zero",
        "compress/put/integer.py",
        "if pads_with_constant(pad) and not pads_with_zero(pad):",
        "if False:",
        STATIC,
        "pad_with_one",
    ),
    Mistake(
        "a sliding average pool is fused",
        "compress/put/integer.py",
        "            _keep_in_float(node, editor)\n",
        "            pass\n",
        STATIC,
        "average_pool or excluded",
    ),
    Mistake("lonely operators converted", "compress/put/sites.py", "chosen -= loose", "break", STATIC, "structure or naming_only"),
    Mistake(
        "shape arithmetic reads the pair", "compress/put/integer.py", 'node.op_type in ("Shape", "Size")', "False", STATIC, "shape_gather"
    ),
    # -- static
    Mistake(
        "bias on the grid of the weights",
        "compress/put/integer.py",
        "scale = (input_grid.scale * grid.scale).astype(np.float32)",
        "scale = (grid.scale * 1.0).astype(np.float32)",
        STATIC,
        "by_hand or structure",
    ),
    Mistake(
        "range of the input for the output",
        "compress/graph.py",
        'output = None if site.output is None else statistics[site.output.name or ""]',
        'output = None if site.output is None else statistics[site.tensors[0].name or ""]',
        STATIC,
        "by_hand or bound",
    ),
    Mistake(
        "eight bits where seven are safe",
        "compress/techniques/static.py",
        "else min(bits, target.weight_bits)",
        "else bits",
        STATIC,
        "seven_bits",
    ),
    Mistake(
        "one scale for all channels",
        "compress/techniques/static.py",
        "1 if block else 0 if per_channel else None",
        "1 if block else None",
        STATIC,
        "one_scale or by_hand",
    ),
    Mistake(
        "asymmetric where symmetric is asked",
        "compress/techniques/static.py",
        "symmetric=target.symmetric_activations",
        "symmetric=False",
        STATIC,
        "symmetric",
    ),
    Mistake(
        "last batch left out of calibration",
        "compress/runtime.py",
        "    for feeds in data.batches(batch):\n",
        "    for feeds in data.take(range(max(len(data) - 1, 1))).batches(batch):\n",
        STATIC,
        "fixed_batch",
    ),
    # -- weight only
    Mistake(
        "nibbles the wrong way round",
        "compress/put/storage.py",
        "(codes[..., 0::2] | (codes[..., 1::2] << 4))",
        "(codes[..., 1::2] | (codes[..., 0::2] << 4))",
        WEIGHT_ONLY,
        "unpack",
    ),
    Mistake(
        "ragged end not counted as a block",
        "compress/put/storage.py",
        "blocks, shift = block_count(columns, grid.block),",
        "blocks, shift = columns // grid.block,",
        WEIGHT_ONLY,
        "unpack or packed_kernel",
    ),
    Mistake(
        "signed codes not moved up",
        "compress/put/storage.py",
        "padded[:, :columns] = weight.codes.astype(np.int16) + shift",
        "padded[:, :columns] = weight.codes.astype(np.int16)",
        WEIGHT_ONLY,
        "unpack",
    ),
    Mistake(
        "scales transposed",
        "compress/put/storage.py",
        "grid.scale.astype(np.float32).ravel(),",
        "grid.scale.astype(np.float32).T.ravel(),",
        WEIGHT_ONLY,
        "unpack",
    ),
    Mistake("zero points forgotten", "compress/put/storage.py", "    if zero.any():\n", "    if False:\n", WEIGHT_ONLY, "exported_model"),
    Mistake(
        "channels of a transposed convolution on the wrong axis",
        "compress/weights.py",
        '"ConvTranspose": (Slot(1, 1, 2),)',
        '"ConvTranspose": (Slot(1, 0, 2),)',
        WEIGHT_ONLY,
        "ConvTranspose",
    ),
    Mistake(
        "accuracy level ignored", "compress/put/storage.py", 'change.kernel.get("accuracy_level", 4)', "4", WEIGHT_ONLY, "packed_kernel"
    ),
    Mistake(
        "bias of a packed product dropped",
        "compress/put/storage.py",
        'bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None\n    old',
        "bias = None\n    old",
        WEIGHT_ONLY,
        "matrix_product",
    ),
    # -- dynamic
    Mistake("transB forgotten", "compress/put/dynamic.py", "codes = np.ascontiguousarray(codes.T)", "pass", DYNAMIC, "transB"),
    Mistake("transA forgotten", "compress/put/dynamic.py", 'if int_attribute(node, "transA", 0):', "if False:", DYNAMIC, "transposed"),
    Mistake(
        "zero point of moved codes wrong",
        "compress/put/dynamic.py",
        "np.array(128, np.uint8)",
        "np.array(127, np.uint8)",
        DYNAMIC,
        "specification",
    ),
    Mistake(
        "scale of the activations dropped",
        "compress/put/dynamic.py",
        'factor = editor.node("Mul", [scale_x, editor.constant(scale_w)])',
        "factor = editor.constant(scale_w)",
        DYNAMIC,
        "specification",
    ),
    Mistake(
        "directions of an LSTM mixed with its gates",
        "compress/put/dynamic.py",
        "codes = weight.codes.reshape(hidden4, directions, width).transpose(1, 2, 0)",
        "codes = weight.codes.reshape(directions, hidden4, width).transpose(0, 2, 1)",
        DYNAMIC,
        "recurrent_layers_run",
    ),
    Mistake(
        "W and R of an LSTM exchanged",
        "compress/put/dynamic.py",
        "key=lambda item: item[0].index",
        "key=lambda item: -item[0].index",
        DYNAMIC,
        "recurrent_layers_run",
    ),
    Mistake(
        "convolutions without being asked",
        "compress/techniques/dynamic.py",
        'if layer.op == "Conv" and not convolutions:',
        "if False:",
        DYNAMIC,
        "stays_float or unsupported",
    ),
    # -- float16
    Mistake(
        "overflow let through",
        "compress/techniques/float16.py",
        "not np.all(np.isfinite(_rounded(numbers)))",
        "False",
        FLOAT16,
        "do_not_fit or does_not_fit",
    ),
    Mistake(
        "computed in float16 on a CPU",
        "compress/techniques/float16.py",
        'return compute == "auto" and op in target.float16_ops',
        'return compute == "auto"',
        FLOAT16,
        "on_a_cpu",
    ),
    Mistake(
        "bfloat16 for float16",
        "compress/put/storage.py",
        "stored = editor.constant(as_stored(weight, tuple(array(old).shape), slot))",
        'stored = editor.constant(as_stored(weight, tuple(array(old).shape), slot), "bfloat16")',
        FLOAT16,
        "on_a_cpu",
    ),
    Mistake(
        "outputs left in float16", "compress/put/half.py", "if readers or value.is_graph_output():", "if readers:", FLOAT16, "between_casts"
    ),
    Mistake("a cast for every reader", "compress/put/half.py", "    if value not in halves:\n", "    if True:\n", FLOAT16, "cast_once"),
    Mistake("storage ignored", "compress/techniques/float16.py", 'return compute == "auto" and op', "return op", FLOAT16, "storage_only"),
    # -- recipes, artifacts, files
    Mistake(
        "exclusions ignored",
        "core/recipe.py",
        "return _any_match(self.layers, layer) and not _any_match(self.exclude, layer)",
        "return _any_match(self.layers, layer)",
        APPLY,
        "not_named",
    ),
    Mistake(
        "hashes not compared", "compress/artifacts.py", "if _sha256(path) != file.sha256:", "if False:", ARTIFACTS, "changed or cut_off"
    ),
    Mistake(
        "parent forgotten",
        "compress/artifacts.py",
        "artifact = describe(model, files, parent=parent,",
        "artifact = describe(model, files, parent=None,",
        ARTIFACTS,
        "comes_from",
    ),
    Mistake(
        "other folders overwritten",
        "compress/artifacts.py",
        "and not (folder / MANIFEST_NAME).is_file():",
        "and False:",
        ARTIFACTS,
        "no_other_folder",
    ),
    Mistake(
        "written in place",
        "device/files.py",
        'handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")',
        "name = str(path)\n        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)",
        FILES,
        "full or killed",
    ),
    Mistake(
        "the old folder is gone first",
        "device/files.py",
        "            os.replace(old, path)\n            raise\n",
        "            raise\n",
        FILES,
        "comes_back",
    ),
)
