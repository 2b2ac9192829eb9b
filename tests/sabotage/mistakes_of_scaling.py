"""Deliberate mistakes in equalisation, SmoothQuant and the evening out of inputs: see mistakes.py."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

EQUALIZE, SMOOTH, UNEQUAL = "compress/test_equalize.py", "compress/test_smoothquant.py", "compress/test_unequal_inputs.py"

MISTAKES = (
    Mistake(
        "ranges of the second weight taken from its output channels",
        "compress/techniques/equalize.py",
        "after = np.abs(_by_input(second, groups[index + 1])).max(axis=(1, 3)).ravel()",
        "after = np.abs(_by_input(second, groups[index + 1])).max(axis=(2, 3)).ravel()",
        EQUALIZE,
        "paper or any_chain",
    ),
    Mistake(
        "bias not divided with its weight",
        "compress/techniques/equalize.py",
        "biases[index] = None if bias is None else bias / scale",
        "biases[index] = bias",
        EQUALIZE,
        "paper or any_chain",
    ),
    Mistake(
        "absorbed what stood there before equalising",
        "compress/techniques/equalize.py",
        "_high_part(link.outputs) / total[index])",
        "_high_part(link.outputs))",
        EQUALIZE,
        "high_biases",
    ),
    Mistake(
        "more absorbed than the lowest value seen",
        "compress/techniques/equalize.py",
        "np.clip(np.minimum(mean - 3 * spread, low), 0, None)",
        "np.clip(mean - spread, 0, None)",
        EQUALIZE,
        "high_biases",
    ),
    Mistake(
        "high biases moved through padding",
        "compress/walks/chains.py",
        "rectified and shifted and not _pads(reader), columns",
        "rectified, columns",
        EQUALIZE,
        "any_chain",
    ),
    Mistake(
        "a Pad with ones in a chain",
        "compress/walks/chains.py",
        'node.op_type == "Pad" and maps and pads_with_zero(node) and _leaves_channels(node)',
        'node.op_type == "Pad" and maps and _leaves_channels(node)',
        EQUALIZE,
        "ends_a_chain",
    ),
    Mistake(
        "a shared weight equalised for one of its layers",
        "compress/walks/chains.py",
        "if len(list(weight.uses())) > 1 or (node.op_type",
        "if (node.op_type",
        EQUALIZE,
        "share",
    ),
    Mistake(
        "alpha the other way round",
        "compress/techniques/smoothquant.py",
        ".astype(np.float64) ** alpha / weights ** (1 - alpha)",
        ".astype(np.float64) ** (1 - alpha) / weights ** alpha",
        SMOOTH,
        "paper",
    ),
    Mistake(
        "an unseen channel magnified",
        "compress/techniques/smoothquant.py",
        "return np.where(live, scales, unseen).astype(np.float32)",
        "return np.where(live, scales, scales.min()).astype(np.float32)",
        SMOOTH,
        "say_nothing",
    ),
    Mistake(
        "factors folded although others read the input",
        "compress/put/scaling.py",
        "if value.is_graph_output() or any(node not in layers for node in value.consumers()):",
        "if value.is_graph_output():",
        SMOOTH,
        "others_read",
    ),
    Mistake(
        "an added constant that is not divided",
        "compress/put/scaling.py",
        "return None if rest is None else [*own, *rest]",
        "return rest",
        SMOOTH,
        "takes_the_factors",
    ),
    Mistake(
        "inputs never evened out",
        "compress/walks/unequal_inputs.py",
        "return candidates[best] if losses[best] * LEAST_GAIN < before else None",
        "return candidates[best] if losses[best] * LEAST_GAIN > before else None",
        UNEQUAL,
        "uneven_channels or need_nothing",
    ),
    Mistake(
        "evened inputs keep their old ranges",
        "compress/walks/sites.py",
        "        statistics |= collected_again(working, names, work, wanted(work.layers.values()))\n",
        "        statistics |= {name: next(iter(statistics.values())) for name in names}\n",
        UNEQUAL,
        "uneven_channels",
    ),
)
