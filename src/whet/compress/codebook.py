"""Numbers on a code book: sixteen levels that are not equally spaced, times a scale for each block of the flattened tensor."""

from __future__ import annotations

from dataclasses import dataclass

from whet.compress.grid import Array, Floats


@dataclass(frozen=True, eq=False)
class Coded:
    """codes: [out, in] uint8 below 16. book: "nf4" or "fp4". block: numbers of the flattened tensor that share a scale.
    double: whether the scales are rounded to 8 bits themselves.
    """

    codes: Array
    book: str
    block: int
    double: bool

    @property
    def values(self) -> Floats:
        """The numbers that the codes stand for, float32 [out, in]."""
        raise NotImplementedError
