"""Getting a model in: from a file, bytes, a proto, PyTorch, or a name; always to a checked ``onnx_ir.Model``."""

from whet.compress.source.dispatch import read_model
from whet.compress.source.normalise import normalise
from whet.compress.source.onnx_file import from_proto, read_onnx, read_onnx_bytes
from whet.compress.source.operators import control_flow
from whet.compress.source.torch_import import import_callable
from whet.compress.source.torch_module import from_torch

__all__ = ["control_flow", "from_proto", "from_torch", "import_callable", "normalise", "read_model", "read_onnx", "read_onnx_bytes"]
