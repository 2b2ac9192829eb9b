"""Deliberate mistakes in who is blamed, why, and what a remedy is said to cost."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

EXPLAIN, CAUSES = "compress/test_explain.py", "compress/test_explain_causes.py"
_DIFFERENCES, _SIMULATE, _SENSITIVITY, _CAUSES, _PRICES, _REMEDIES = (
    f"compress/explain/{name}.py" for name in ("differences", "simulate", "sensitivity", "causes", "prices", "remedies")
)

MISTAKES = (
    Mistake(
        "a grid cuts off at the codes of another zero point",
        _SIMULATE,
        "(grid.scale, grid.lowest - grid.zero_point, grid.highest - grid.zero_point)",
        "(grid.scale, grid.lowest, grid.highest)",
        EXPLAIN,
        "make_up_the_layer",
    ),
    Mistake(
        "left out is only the layer's grid",
        _SENSITIVITY,
        "whole.without([layer], found.tensors_of(layer))",
        "whole.without([], found.tensors_of(layer))",
        EXPLAIN,
        "alone_and_without",
    ),
    Mistake(
        "a grid is blamed on who reads it",
        _DIFFERENCES,
        "owner = maker.name if maker is not None else _origin(tensor, target)",
        "owner = next(iter(sorted(known)), tensor.name)",
        EXPLAIN,
        "times_100 or takes_back",
    ),
    Mistake(
        "the quietest layers are measured first",
        _SENSITIVITY,
        "return sorted(found.owners, key=added, reverse=True)",
        "return sorted(found.owners, key=added)",
        EXPLAIN,
        "noisiest_layer",
    ),
    Mistake(
        "a wide channel is blamed where each has a scale of its own",
        _CAUSES,
        "if np.median(error[others]) < SHARED * error[widest]:",
        "if np.median(error[others]) < 0:",
        f"{EXPLAIN} {CAUSES}",
        "times_100 or wide_channel or few_input",
    ),
    Mistake(
        "a bias that fills int32 is nothing unusual",
        _CAUSES,
        "_OF_WEIGHTS = (_bias_overflow, ",
        "_OF_WEIGHTS = (",
        f"{EXPLAIN} {CAUSES}",
        "bias_that_asks or bias_without_room",
    ),
    Mistake(
        "the bias of a dead channel is blamed",
        _CAUSES,
        "& (shared or alive)",
        "& True",
        CAUSES,
        "bias_without_room",
    ),
    Mistake(
        "one step for all channels is taken for one each",
        _DIFFERENCES,
        "array(step).size == 1)",
        "False)",
        EXPLAIN,
        "bias_that_asks",
    ),
    Mistake(
        "cutting off is not counted",
        _CAUSES,
        "if share <= 0 or cut <= rounded:",
        "if share <= 0 or cut <= 1e9 * rounded:",
        CAUSES,
        "cut_off",
    ),
    Mistake(
        "small weights are lost though nothing large reads them",
        _CAUSES,
        "or weights.inputs[least] < UNEQUAL * np.median(weights.inputs):",
        "or False:",
        CAUSES,
        "large_input",
    ),
    Mistake(
        "the size is the whole file's and not what it grows by",
        _PRICES,
        "grown = file_bytes(model) - base",
        "grown = file_bytes(model)",
        EXPLAIN,
        "done_and_priced",
    ),
    Mistake(
        "a layer that stays in float is quantised",
        _REMEDIES,
        "steps.append(replace(step, exclude=(*step.exclude, name)))",
        "steps.append(replace(step, exclude=(*step.exclude,)))",
        EXPLAIN,
        "done_and_priced",
    ),
)
