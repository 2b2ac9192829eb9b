"""The trainable mirror of a graph: an ONNX model as a ``torch.nn.Module`` that computes the same and lets gradients flow.

One table of operators (``table.py``); what is not in it is refused by name. Weights keep their names and go back bit-exactly.
"""

from whet.compress.mirror.module import Mirror, mirror, unrolled
from whet.compress.mirror.step import Step

__all__ = ["Mirror", "Step", "mirror", "unrolled"]
