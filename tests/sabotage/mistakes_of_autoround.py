"""Deliberate mistakes in learning where weights lie on their grids."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

LEARNED, AUTOROUND = "compress/learned_grids.py", "compress/test_autoround.py"

MISTAKES = (
    Mistake(
        "inside, the scale's gradient without what the weight gives",
        LEARNED,
        "        of_scale = steps.addcdiv_(weight * inside, scale, value=-1)",
        "        of_scale = steps.addcdiv_(weight * inside, scale, value=0)",
        AUTOROUND,
        "gradients",
    ),
    Mistake(
        "gradients pass what was clipped",
        LEARNED,
        "        to_v = gradient * inside",
        "        to_v = gradient * 1.0",
        AUTOROUND,
        "gradients",
    ),
    Mistake(
        "the zero point's gradient with the wrong sign", LEARNED, "(to_v - gradient).sum", "(gradient - to_v).sum", AUTOROUND, "gradients"
    ),
    Mistake(
        "what is learned is not what is stored",
        LEARNED,
        "    return _straight(scale, stored.to(getattr(torch, dtype)).float())",
        "    return scale",
        AUTOROUND,
        "what_is_stored",
    ),
    Mistake(
        "weights go a whole step",
        LEARNED,
        "reach = math.inf if moving else 0.5",
        "reach = math.inf if moving else 1.0",
        AUTOROUND,
        "slow_paper or ends or up_or_down",
    ),
    Mistake(
        "along the gradient",
        LEARNED,
        "            self.parameter.sub_(gradient.sign_()",
        "            self.parameter.add_(gradient.sign_()",
        AUTOROUND,
        "slow_paper or plain_rounding_on_other",
    ),
    Mistake(
        "the rate does not fall",
        LEARNED,
        "        return self.rate * (1 - step / self.steps)",
        "        return self.rate",
        AUTOROUND,
        "slow_paper",
    ),
    Mistake(
        "the last step is kept",
        LEARNED,
        "                if error < least:",
        "                if True:",
        AUTOROUND,
        "slow_paper or never_ends",
    ),
    Mistake(
        "inputs in float",
        LEARNED,
        "[each[chosen] for each in block.inputs]",
        "[each[chosen] for each in block.exact_inputs]",
        AUTOROUND,
        "rounded_blocks_before",
    ),
    Mistake(
        "windows that nobody asked for",
        LEARNED,
        "    count = min(schedule.windows, len(block.targets))",
        "    count = len(block.targets)",
        AUTOROUND,
        "as_many_windows",
    ),
    Mistake(
        "what a step before has made is forgotten",
        "compress/checkpoint/shows.py",
        "if isinstance(made := block.rounded.get(name), Quantised)}",
        "if isinstance(made := block.rounded.get(name + '.'), Quantised)}",
        AUTOROUND,
        "gptq_before",
    ),
    Mistake(
        "the ends of the grid before, one code off",
        LEARNED,
        "(found.highest - zero) * scale",
        "(found.highest + 1 - zero) * scale",
        AUTOROUND,
        "step_before",
    ),
)
