"""Deliberate mistakes in how calibration data streams through a model."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

CALIBRATE = "compress/test_calibrate.py"

MISTAKES = (
    Mistake(
        "every batch is a group of the moving average",
        "compress/statistics.py",
        "        if samples < GROUP:\n",
        "        if samples < 1:\n",
        CALIBRATE,
        "change_no_range",
    ),
    Mistake(
        "the newest batch first",
        "compress/calibrate.py",
        "yield running.popleft().result()  # in no variable",
        "yield running.pop().result()  # in no variable",
        CALIBRATE,
        "threads_change_nothing",
    ),
    Mistake(
        "minus infinity is a number",
        "compress/statistics.py",
        "if not (np.isfinite(low) and np.isfinite(high)):",
        "if not np.isfinite(high):",
        "compress/test_statistics.py",
        "numbers_that_are_none",
    ),
    Mistake(
        "batches pile up",
        "compress/calibrate.py",
        "        if len(running) == at_once:\n",
        "        if len(running) == 8 * at_once:\n",
        CALIBRATE,
        "no_more_batches",
    ),
    Mistake(
        "batches of one mean",
        "compress/statistics.py",
        "new.squares + apart**2 * (self._channel_count * new.count / both)",
        "new.squares",
        CALIBRATE,
        "numbers_of_channels",
    ),
    Mistake(
        "only whole blocks are counted",
        "compress/statistics.py",
        "range(0, flat.size, _BLOCK)",
        "range(0, flat.size - _BLOCK + 1, _BLOCK)",
        "compress/test_statistics.py",
        "in_the_bin",
    ),
    Mistake(
        "every core but one looks",
        "compress/calibrate.py",
        "[names[at::cores] for at in range(min(cores, len(names)))]",
        "[names[at::cores] for at in range(max(min(cores, len(names)) - 1, 1))]",
        CALIBRATE,
        "every_tensor",
    ),
    Mistake(
        "channels on the first axis, whatever was asked",
        "compress/statistics.py",
        "_channels(values, self.channel_axis % values.ndim)",
        "_channels(values, 0)",
        CALIBRATE,
        "numbers_of_channels",
    ),
    Mistake(
        "constants that begin alike are one",
        "compress/edit.py",
        "            if np.array_equal(content, other):\n",
        "            if True:\n",
        "compress/test_graph.py",
        "begin_alike",
    ),
    Mistake(
        "the bytes of one sample too few",
        "compress/runtime.py",
        "np.dtype(spec.dtype).itemsize * math.prod(",
        "1 * math.prod(",
        "compress/test_runtime.py",
        "session_states",
    ),
    Mistake(
        "an unknown shape counts as none",
        "compress/runtime.py",
        "if not shape or None in shape or spec.dtype not in np.sctypeDict:",
        "if spec.dtype not in np.sctypeDict:",
        "compress/test_runtime.py",
        "not_stated",
    ),
    Mistake(
        "tensors without a histogram are kept",
        "compress/calibrate.py",
        "for name in looks if histogram}",
        "for name in looks}",
        CALIBRATE,
        "let_go",
    ),
    Mistake(
        "objects stay frozen",
        "compress/apply.py",
        "        gc.unfreeze()\n",
        "        pass\n",
        "compress/test_apply.py",
        "collector",
    ),
    Mistake(
        "objects that a caller froze are thawed",
        "compress/apply.py",
        "    if gc.get_freeze_count():",
        "    if False:",
        "compress/test_apply.py",
        "collector",
    ),
)
