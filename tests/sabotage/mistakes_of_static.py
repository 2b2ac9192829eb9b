"""Deliberate mistakes in the widths and grids of ``static``, and in what goes into the bodies of control flow."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

BITS, UNUSUAL, COMPLAINTS = "compress/test_static_bits.py", "compress/test_unusual_layers.py", "compress/test_complaints.py"

MISTAKES = (
    Mistake(
        "weights left in float between integer layers are not protected from the runtime",
        "compress/put/integer.py",
        "        elif (node.name not in found or node in simulated) and node not in fused and _would_fuse(node, target):\n",
        "        elif node.name not in found and node not in fused and node.op_type not in _ROUNDED_BY_THE_RUNTIME"
        " and _would_fuse(node, target):\n",
        f"{BITS} {UNUSUAL}",
        "rounded_again or excluded or transposed",
    ),
    Mistake(
        "four bits straight into DequantizeLinear",
        "compress/put/integer.py",
        "    if grid.bits > 4:\n        return codes\n",
        "    return codes\n",
        BITS,
        "numbers or on_disk",
    ),
    Mistake(
        "codes of few bits not clipped",
        "compress/put/integer.py",
        "    if grid.bits >= 8:\n        return editor.dequantise",
        "    if grid.bits >= 4:\n        return editor.dequantise",
        BITS,
        "numbers",
    ),
    Mistake(
        "the narrowest grid wins",
        "compress/put/integer.py",
        "elif grid is not None and grid.bits > grids[value].bits and",
        "elif grid is not None and grid.bits < grids[value].bits and",
        BITS,
        "share",
    ),
    Mistake(
        "the reader's width is not seen through a pool",
        "compress/put/integer.py",
        "            grids[before] = widened(grids[before], grids[after].bits)\n",
        "            pass\n",
        BITS,
        "share",
    ),
    Mistake(
        "blocks run along another axis",
        "compress/put/storage.py",
        "    moved = np.array([shape[axis], *shape[:axis], *shape[axis + 1 :]], np.int64)\n",
        "    moved = np.array([*shape[1:], shape[0]], np.int64)\n",
        BITS,
        "numbers and block",
    ),
    Mistake(
        "asymmetric weights given to the integer kernel",
        "compress/put/integer.py",
        "and not grid.block and not grid.zero_point.any())",
        "and not grid.block)",
        BITS,
        "numbers or kernel",
    ),
    Mistake(
        "speed promised for what is simulated",
        "compress/estimate.py",
        ' and not self.foresight.runs_as.startswith("float32 ")\n',
        "\n",
        BITS,
        "foreseen",
    ),
    Mistake(
        "boxes and scores on one grid",
        "compress/put/sites.py",
        "    return any(node.op_type in _CUTTERS or",
        "    return any(node.op_type in () or",
        f"{UNUSUAL} {COMPLAINTS}",
        "boxes",
    ),
    Mistake(
        "weights that branches share are stored in each",
        "compress/put/dynamic.py",
        "    store = editor.within(stored.graph)",
        "    store = editor",
        UNUSUAL,
        "inside_branches",
    ),
    Mistake(
        "static goes into branches",
        "compress/apply.py",
        "() if used.enters_bodies else model.inner_names\n",
        "()\n",
        UNUSUAL,
        "outside",
    ),
    Mistake(
        "the factors of branches go to the wrong channels",
        "compress/walks/unequal_branches.py",
        "np.repeat(factors, join.sizes)",
        "np.repeat(factors[::-1], join.sizes)",
        UNUSUAL,
        "narrow_branch",
    ),
    Mistake(
        "biases are corrected towards undivided branches",
        "compress/walks/sites.py",
        "model.reference or (working.copied() if divided else model)",
        "model.reference or model",
        UNUSUAL,
        "biases_are_corrected",
    ),
)
