"""Deliberate mistakes in fp4. See mistakes.py."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

CODEBOOK = "compress/test_codebook.py"

MISTAKES = (
    Mistake(
        "codes of fp4 in the order of their levels",
        "compress/codebook.py",
        'return found if book == "nf4" else order.take(found)',
        "return found",
        CODEBOOK,
        "agrees_with_the_paper",
    ),
    Mistake(
        "the levels of fp4 not divided by the largest",
        "compress/codebook.py",
        "np.array(_FP4, np.float32) / np.float32(12)",
        "np.array(_FP4, np.float32) / np.float32(8)",
        CODEBOOK,
        "levels or paper",
    ),
    Mistake(
        "the code book of nf4 in fp4",
        "compress/techniques/fp4.py",
        'coded(layer.weight, "fp4", block=block, double=double)',
        'coded(layer.weight, "nf4", block=block, double=double)',
        CODEBOOK,
        "codes_the_weight",
    ),
    Mistake(
        "fp4 for every layer with a weight",
        "compress/techniques/fp4.py",
        'replace(found, weights="fp4") if found.applies else found',
        'replace(found, weights="fp4", applies=True)',
        CODEBOOK,
        "foresees",
    ),
    Mistake(
        "fp4 in blocks of 64 whatever is asked",
        "compress/techniques/fp4.py",
        "block=block, double=double))",
        "block=64, double=double))",
        CODEBOOK,
        "codes_the_weight",
    ),
)
