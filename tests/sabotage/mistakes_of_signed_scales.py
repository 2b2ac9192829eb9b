"""Deliberate mistakes with scales below zero, which language models' symmetric grids may have. See mistakes.py."""

from __future__ import annotations

from tests.sabotage.mistakes import GRID, Mistake
from tests.sabotage.mistakes_of_autoround import AUTOROUND
from tests.sabotage.mistakes_of_language import AWQ
from tests.sabotage.mistakes_of_rounding import HQQ, SEARCH

APPLIED = "checkpoint/test_apply_checkpoint.py"

MISTAKES = (
    Mistake(
        "the number farthest from zero without its sign",
        "compress/grid.py",
        "np.where(high32 > -low32, high32, low32) / np.float32(-(1 << (bits - 1)))",
        "np.maximum(high32, -low32) / np.float32(1 << (bits - 1))",
        GRID,
        "farthest_from_zero",
    ),
    Mistake(
        "equal ends on the highest code",
        "compress/grid.py",
        "np.where(high32 > -low32,",
        "np.where(high32 >= -low32,",
        GRID,
        "ends_that_are_equal",
    ),
    Mistake(
        "signs lost where scales are stored",
        "compress/grid.py",
        "np.clip(scale, kind.min, kind.max)",
        "np.clip(np.abs(scale), kind.min, kind.max)",
        GRID,
        "equal or come_back",
    ),
    Mistake(
        "scales below zero taken for no scales",
        "compress/grid.py",
        "np.where(np.abs(scale) > SMALLEST_SCALE",
        "np.where(scale > SMALLEST_SCALE",
        GRID,
        "farthest_from_zero",
    ),
    Mistake(
        "errors of a scale below zero",
        "compress/weight_search.py",
        "* np.abs(scale) ** POWER)",
        "* np.sign(scale) * np.abs(scale) ** POWER)",
        SEARCH,
        "best_share or never_worse",
    ),
    Mistake(
        "no share above one",
        "compress/weight_search.py",
        "for each in SHARES if widest == 1.0 else (widest, *SHARES):",
        "for each in SHARES:",
        SEARCH,
        "never_worse",
    ),
    Mistake(
        "hqq leaves grids of scales below zero as they are",
        "compress/techniques/hqq.py",
        "good = along * np.sign(before) > np.abs(before) * length",
        "good = along > before * length",
        HQQ,
        "of_the_paper",
    ),
    Mistake(
        "checkpoints leave a code out",
        "compress/checkpoint/block.py",
        "scales=SCALES, either_sign=True)",
        "scales=SCALES)",
        APPLIED,
        "every_code",
    ),
    Mistake(
        "tables leave a code out",
        "compress/checkpoint/apply.py",
        "scales=SCALES, either_sign=True)",
        "scales=SCALES)",
        APPLIED,
        "every_code",
    ),
    Mistake(
        "learned scales all above zero",
        "compress/learned_grids.py",
        ".copysign(scale.detach())",
        "",
        AUTOROUND,
        "is_what_is_stored or begins_with",
    ),
    Mistake(
        "learned scales below zero taken for no scales",
        "compress/learned_grids.py",
        "torch.where(scale.abs() > torch",
        "torch.where(scale > torch",
        AUTOROUND,
        "begins_with",
    ),
    Mistake(
        "learned grids go no further than their start",
        "compress/learned_grids.py",
        "self.widest = widest_share(bits) if every_code else 1.0",
        "self.widest = 1.0",
        AUTOROUND,
        "widens",
    ),
    Mistake(
        "awq tries no share above one",
        "compress/techniques/awq.py",
        "shares = sorted({widest, *",
        "shares = sorted({1.0, *",
        AWQ,
        "paper_ends_them",
    ),
)
