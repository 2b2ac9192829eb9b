"""Deliberate mistakes in the mirror of a graph: what to replace in which file, and the tests that must notice."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

MIRROR, ONNX = "compress/test_mirror.py", "compress/test_mirror_onnx.py"

MISTAKES = (
    # -- operators
    Mistake(
        "gates of an LSTM in ONNX's order",
        "compress/mirror/recurrent.py",
        "_Kind(4, (0, 2, 3, 1),",
        "_Kind(4, (0, 1, 2, 3),",
        MIRROR,
        "recurrent_layers",
    ),
    Mistake(
        "the reset gate of a GRU on the wrong side of the product",
        "compress/mirror/recurrent.py",
        "b_h) if layer.inner_reset else",
        "b_h) if not layer.inner_reset else",
        MIRROR,
        "recurrent_layers",
    ),
    Mistake(
        "the odd zero of SAME_UPPER before the data",
        "compress/mirror/windows.py",
        "if upper else (total - total // 2, total // 2))",
        "if not upper else (total - total // 2, total // 2))",
        MIRROR,
        "every_kind",
    ),
    Mistake(
        "a Reduce without axes reduces all of them, whatever it says",
        "compress/mirror/reduction.py",
        "return function(x.unsqueeze(-1), (-1,), False) if still else function(x,",
        "return function(x,",
        ONNX,
        "reduction",
    ),
    Mistake(
        "a scan that always runs forwards",
        "compress/mirror/control.py",
        "return parts[::-1] if backwards else parts",
        "return parts",
        MIRROR,
        "scan",
    ),
    # -- gradients
    Mistake(
        "rounding without a gradient",
        "compress/mirror/quantisation.py",
        "(torch.round(values) - values).detach() if",
        "(torch.round(values) - values) if",
        MIRROR,
        "straight_through or beyond",
    ),
    Mistake(
        "gradients beyond the ends of the grid",
        "compress/mirror/quantisation.py",
        "        codes = codes.clamp(low, high)\n",
        "        codes = codes + (codes.clamp(low, high) - codes).detach()\n",
        MIRROR,
        "beyond",
    ),
    Mistake(
        "codes that leave the graph as floats",
        "compress/mirror/codes.py",
        "if value.is_graph_output() or maker is None:",
        "if maker is None:",
        MIRROR,
        "leave_the_graph",
    ),
    # -- weights and steps
    Mistake(
        "weights of inner graphs not written back",
        "compress/mirror/module.py",
        "for graph in (root, *root.subgraphs()):",
        "for graph in (root,):",
        MIRROR,
        "written_back",
    ),
    Mistake(
        "statistics of batch norms trained as if they were weights",
        "compress/mirror/build.py",
        "                if index not in node.frozen:\n",
        "                if index >= 0:\n",
        MIRROR,
        "names_of_the_graph",
    ),
    Mistake(
        "activations kept for ever",
        "compress/mirror/build.py",
        "found.append(replace(step, done=done))",
        "found.append(replace(step, done=()))",
        MIRROR,
        "one_by_one",
    ),
    Mistake(
        "an attribute that nobody read is passed over",
        "compress/mirror/node.py",
        "        if self._unread:\n",
        "        if len(self._unread) > 1:\n",
        MIRROR,
        "refused_by_name",
    ),
    Mistake(
        "constants baked in the wrong place",
        "compress/mirror/build.py",
        "            places.append(scope.baked[value.name])\n",
        "            places.insert(0, scope.baked[value.name])\n",
        ONNX,
        "shapes or indexing",
    ),
)
