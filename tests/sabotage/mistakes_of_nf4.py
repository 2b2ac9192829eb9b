"""Deliberate mistakes in code books and in the way they are stored. See mistakes.py."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

CODEBOOK, LAYOUT = "compress/test_codebook.py", "compress/test_bitsandbytes_layout.py"

MISTAKES = (
    Mistake(
        "ties to the upper level",
        "compress/codebook.py",
        "np.greater(values, middle, out=above)",
        "np.greater_equal(values, middle, out=above)",
        CODEBOOK,
        "ties_zeros",
    ),
    Mistake(
        "what is left of the blocks multiplied by the inverse of the last whole one",
        "compress/codebook.py",
        "_nearest(flat[whole:] / scales[-1], book)",
        "_nearest(flat[whole:] / scales[0], book)",
        CODEBOOK,
        "agrees_with_the_paper",
    ),
    Mistake(
        "the largest number where the largest size is meant",
        "compress/codebook.py",
        "found: Floats = np.abs(blocks).max(axis=1)",
        "found: Floats = blocks.max(axis=1)",
        CODEBOOK,
        "agrees_with_the_paper",
    ),
    Mistake(
        "scales of the first piece for all pieces",
        "compress/codebook.py",
        "first = start // self.block",
        "first = 0",
        CODEBOOK,
        "in_pieces",
    ),
    Mistake(
        "the mean of the scales forgotten when they come back",
        "compress/codebook.py",
        "dynamic_map()[self.codes] * peaks + np.float32(self.offset)",
        "dynamic_map()[self.codes] * peaks",
        CODEBOOK,
        "double_quantisation",
    ),
    Mistake(
        "the largest deviation without its sign taken for the largest scale",
        "compress/codebook.py",
        "np.maximum.reduceat(np.abs(centred), ",
        "np.maximum.reduceat(np.abs(scales), ",
        CODEBOOK,
        "double_quantisation or bitsandbytes_does",
    ),
    Mistake(
        "one peak for all scales",
        "compress/codebook.py",
        "peaks = np.repeat(self.peaks, OUTER_BLOCK)[: len(self.codes)]",
        "peaks = np.repeat(self.peaks[:1], len(self.codes))",
        CODEBOOK,
        "double_quantisation or bitsandbytes_does",
    ),
    Mistake(
        "decades of the dynamic map cut alike",
        "compress/codebook.py",
        "np.float32(10.0 ** (exponent - 6))",
        "np.float32(2.0 ** (exponent - 6))",
        CODEBOOK,
        "levels",
    ),
    Mistake(
        "the code book of fp4 in nf4",
        "compress/techniques/nf4.py",
        'coded(layer.weight, "nf4", block=block, double=double)',
        'coded(layer.weight, "fp4", block=block, double=double)',
        CODEBOOK,
        "codes_the_weight",
    ),
    Mistake(
        "scales always rounded",
        "compress/techniques/nf4.py",
        "block=block, double=double))",
        "block=block, double=True))",
        CODEBOOK,
        "codes_the_weight",
    ),
    Mistake(
        "tables of tokens on a code book",
        "compress/techniques/nf4.py",
        'OPS = frozenset({"Linear", "Head"})',
        'OPS = frozenset({"Linear", "Head", "Embedding"})',
        CODEBOOK,
        "foresees",
    ),
    # -- how they are stored
    Mistake(
        "the first code in the lower bits",
        "compress/checkpoint/bitsandbytes_layout.py",
        "((flat[0::2] << np.uint8(4)) | flat[1::2])[:, None]",
        "((flat[1::2] << np.uint8(4)) | flat[0::2])[:, None]",
        LAYOUT,
        "upper_bits",
    ),
    Mistake(
        "the words as long as their numbers",
        "compress/checkpoint/bitsandbytes_layout.py",
        '.ljust(longest).encode()',
        ".encode()",
        LAYOUT,
        "planned or depend",
    ),
    Mistake(
        "half a byte forgotten",
        "compress/checkpoint/bitsandbytes_layout.py",
        '"U8", ((count + 1) // 2, 1))',
        '"U8", (count // 2, 1))',
        LAYOUT,
        "planned",
    ),
    Mistake(
        "columns and rows exchanged",
        "compress/checkpoint/bitsandbytes_layout.py",
        "return int(rows), int(columns)",
        "return int(columns), int(rows)",
        LAYOUT,
        "planned or gives_them_back",
    ),
)
