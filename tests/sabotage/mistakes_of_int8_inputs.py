"""Deliberate mistakes in what layers of language models read in int8, and in SmoothQuant on checkpoints. See mistakes.py."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

PLACE = "compress/checkpoint"
READ, SMOOTHED, STORED = (f"checkpoint/test_{name}.py" for name in ("rounded_inputs", "smoothquant_blocks", "stored"))
ONNX = "compress/test_onnx_export.py"

MISTAKES = (
    Mistake(
        "one scale for all tokens",
        "compress/grid.py",
        "widest = np.abs(inputs).max(axis=1, initial=0)",
        "widest = np.abs(inputs).max(axis=1, initial=0) * 0 + np.abs(inputs).max(initial=0)",
        READ,
        "slow_paper",
    ),
    Mistake(
        "a token's scale for codes to 127 alone",
        "compress/grid.py",
        "widest / np.float32(127.5))",
        "widest / np.float32(127))",
        READ,
        "slow_paper",
    ),
    Mistake(
        "rounding stops gradients",
        "compress/fake.py",
        "        return gradient, None",
        "        return gradient * 0, None",
        READ,
        "gradients or sensitivities",
    ),
    Mistake(
        "the first layer alone reads int8",
        f"{PLACE}/skeleton.py",
        "            self.round_inputs(layer, layout.activations if layout else 0)",
        "            self.round_inputs(layer, layout.activations if layout and layer in self.checkpoint.block_layers(index)[0] else 0)",
        READ,
        "slow_paper",
    ),
    Mistake(
        "int8 inputs stored but not simulated while blocks follow",
        f"{PLACE}/shows.py",
        'activations=8 if change.compute == "dynamic" else 0)',
        "activations=0)",
        READ,
        "later_blocks",
    ),
    Mistake(
        "once int8, int8 for ever",
        f"{PLACE}/skeleton.py",
        "            self._rounding.pop(layer).remove()",
        "            self._rounding.pop(layer)",
        READ,
        "floats_again",
    ),
    Mistake(
        "weights in float that read int8",
        f"{PLACE}/block.py",
        "        self.rounded.pop(self.whole(layer), None)\n        self.skeleton.round_inputs(self.whole(layer), 0)\n",
        "        self.rounded.pop(self.whole(layer), None)\n",
        READ,
        "floats_again",
    ),
    Mistake(
        "a tuned layer stored in the other format",
        f"{PLACE}/tuning.py",
        "stored.tensors(layer, made, now.layouts[layer].activations)",
        "stored.tensors(layer, made)",
        READ,
        "tuning",
    ),
    Mistake(
        "static inputs taken for dynamic ones",
        f"{PLACE}/stored.py",
        "if (words and words != _BY_TOKEN) or",
        "if",
        READ,
        "does_not_write",
    ),
    Mistake(
        "one format said for all",
        f"{PLACE}/stored.py",
        "        **({\"format\": _format(layout)} if mixed else {})}",
        "        }",
        STORED + " " + READ,
        "beside_others or differ",
    ),
    Mistake(
        "int8 inputs computed in float by onnxruntime",
        f"{PLACE}/onnx_export/products.py",
        "_INT8_INPUTS = 4 ",
        "_INT8_INPUTS = 0 ",
        ONNX,
        "int8_inputs",
    ),
    Mistake(
        "one product of layers that read differently",
        f"{PLACE}/onnx_export/products.py",
        "whole = _joined(weights) if len(set(levels)) == 1 else None",
        "whole = _joined(weights)",
        ONNX,
        "read_differently",
    ),
    # -- SmoothQuant
    Mistake(
        "peaks with their sign",
        f"{PLACE}/shows.py",
        "torch.maximum(found, inputs.abs().amax(0), out=found)",
        "torch.maximum(found, inputs.amax(0), out=found)",
        SMOOTHED,
        "paper",
    ),
    Mistake(
        "peaks of the last windows alone",
        f"{PLACE}/shows.py",
        "torch.maximum(found, inputs.abs().amax(0), out=found)",
        "found.copy_(inputs[-24:].abs().amax(0))",
        SMOOTHED,
        "paper",
    ),
    Mistake(
        "factors where heads share values",
        f"{PLACE}/resolve.py",
        "            if not movable(checkpoint, readers):",
        "            if not (readers.norm or readers.maker):",
        SMOOTHED,
        "left_alone or function",
    ),
    Mistake(
        "one of three readers scaled",
        f"{PLACE}/resolve.py",
        "            elif missing := [name.removeprefix(f\"{block}.\") for name in own if name not in names]:",
        "            elif missing := [name for name in own if name == block]:",
        SMOOTHED,
        "refused",
    ),
    Mistake(
        "smoothing what is rounded",
        f"{PLACE}/resolve.py",
        "    if behind := next(rounds, None):",
        "    if behind := next(rounds, None) and None:",
        SMOOTHED,
        "refused",
    ),
)
