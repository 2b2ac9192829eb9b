"""Deliberate mistakes in how an export is asked what its checkpoint is asked. See mistakes.py."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

PLACE, AGREEMENT = "compress/checkpoint/agreement.py", "checkpoint/test_agreement.py"

MISTAKES = (
    Mistake(
        "the divergence the other way round", PLACE, "divergences(one, other)", "divergences(other, one)", AGREEMENT, "defined"
    ),
    Mistake(
        "the mean difference for the largest",
        PLACE,
        "(found - expected).abs().max()",
        "(found - expected).abs().mean()",
        AGREEMENT,
        "defined",
    ),
    Mistake("an encoder's states taken for logits", PLACE, "    if encoder:\n", "    if not encoder:\n", AGREEMENT, "defined"),
    Mistake(
        "the checkpoint compared with itself",
        PLACE,
        "answers_of(open_checkpoint(path), tokens)",
        "answers_of(checkpoint, tokens)",
        AGREEMENT,
        "went_wrong",
    ),
    Mistake("positions that stand still", PLACE, "np.arange(len(tokens))[None]}", "np.zeros_like(ids)}", AGREEMENT, "level_is_seen"),
    Mistake(
        "the level that was asked for forgotten",
        "compress/export.py",
        "path, accuracy_level=accuracy_level)",
        "path)",
        AGREEMENT,
        "level_is_seen",
    ),
    Mistake(
        "what does not run told as nothing", PLACE, 'return Agreement(why=f"it does not run: {error}")', "raise", AGREEMENT, "cannot_be_run"
    ),
)
