"""Deliberate mistakes in mixed precision: what to replace in which file, and the tests that must notice."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

PROGRAM, DESCENT, TABLE = (f"compress/test_mixed_{name}.py" for name in ("program", "descent", "table"))

MISTAKES = (
    Mistake("conversions to float are free", "compress/mixed/program.py",
            "costs[q], costs[d], harms[y] = border.to_integers, border.to_float, border.harm",
            "costs[q], costs[d], harms[y] = border.to_integers, 0.0, border.harm", PROGRAM, "trying_everything or conversion"),
    Mistake("activations do no harm", "compress/mixed/program.py",
            "entries |= {self._of_border(at)[2]: min(border.harm / scale, 2.0) for at, border in enumerate(self.problem.borders)}",
            "entries |= {}", PROGRAM, "harms_once"),
    Mistake("followers need no company", "compress/mixed/program.py",
            "            if unit.follows:\n                self._follow(unit.name)\n",
            "", PROGRAM, "trying_everything"),
    Mistake("bisection turns the wrong way", "compress/mixed/descent.py",
            "        if (yield middle):\n            good = middle",
            "        if not (yield middle):\n            good = middle", DESCENT, "bisection"),
    Mistake("the least harmful layer goes back first", "compress/mixed/descent.py",
            "return max(open_units, key=lambda unit: blame(problem, choice, unit), default=None)",
            "return min(open_units, key=lambda unit: blame(problem, choice, unit), default=None)", DESCENT, "goes_back_first"),
    Mistake("what was given back is taken again", "compress/mixed/descent.py", "found = solve(problem, point.harm, fixed=fixed)",
            "found = solve(problem, point.harm, fixed={})", DESCENT, "goes_back_first"),
    Mistake("layers in float are not left out", "compress/mixed/allotted.py",
            'Step("static", exclude=in_float(problem, choice), options=whole[0].options)', 'Step("static", options=whole[0].options)',
            DESCENT, "left_out"),
    Mistake("borders end at a pool", "compress/mixed/structure.py", "while node is not None and is_mover(node, target)",
            "while node is None and is_mover(node, target)", TABLE, "only_moves_data"),
    Mistake("the profiler's time counts", "compress/mixed/costs.py", "max(kernel.mean_us - overhead, min(", "max(kernel.mean_us, min(",
            TABLE, "profiler_adds"),
    Mistake("directions are those of values", "compress/mixed/fisher.py", "root * (signs - root * (root * signs).sum(1, keepdim=True))",
            "signs", TABLE, "one_backward_pass"),
    Mistake("the rounding is not what is multiplied", "compress/mixed/fisher.py", "step.run(*given)[0] - exact", "step.run(*given)[0]",
            TABLE, "one_backward_pass"),
)
