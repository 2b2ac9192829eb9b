"""One door for every way in which a user may hold a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import onnx
import onnx_ir as ir

from whet.compress.source.onnx_file import from_proto, prepared, read_onnx, read_onnx_bytes
from whet.compress.source.torch_import import import_callable, is_reference
from whet.compress.source.torch_module import from_torch
from whet.core.errors import Refused, Unsupported, WhetError

if TYPE_CHECKING:
    import torch

Source = Union[str, "os.PathLike[str]", bytes, onnx.ModelProto, ir.Model, "torch.nn.Module"]

_OTHER_FORMATS = {
    ".tflite": "TensorFlow Lite", ".h5": "Keras", ".hdf5": "Keras", ".keras": "Keras", ".gguf": "GGUF", ".ggml": "GGML",
    ".safetensors": "safetensors (weights without a graph)", ".mlmodel": "Core ML", ".mlpackage": "Core ML", ".engine": "TensorRT",
    ".plan": "TensorRT", ".ort": "onnxruntime's own format", ".param": "ncnn", ".caffemodel": "Caffe", ".pdmodel": "Paddle",
    ".xml": "OpenVINO", ".pkl": "pickle", ".joblib": "scikit-learn",
}
_TORCH_FILES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pt2", ".torchscript"})


def read_model(source: Source, *, example_inputs: Any = None, weights: str | os.PathLike[str] | None = None) -> ir.Model:
    """A model from a path to an ``.onnx`` file, its bytes, a ModelProto, an ``onnx_ir.Model`` (which is copied, not changed), a
    ``torch.nn.Module``, or the text "package.module:callable".

    example_inputs: for PyTorch only, as in ``from_torch``; where they are missing the module's own attribute ``example_inputs`` is
    taken. weights: for "package.module:callable" only, as in ``import_callable``.
    Raises Refused where the source cannot be read, Unsupported where it is of another kind.
    """
    is_text = isinstance(source, str) and is_reference(source) and not Path(source).exists()
    if weights is not None and not is_text:
        raise Refused(f"load the weights {os.fspath(weights)}", found="weights go with a model that is named as package.module:callable",
                      do="leave the weights out, or name the code of the model")
    if is_text:
        return _from_module(import_callable(str(source), weights), example_inputs, str(source))
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return read_onnx_bytes(bytes(source))
    if isinstance(source, onnx.ModelProto):
        own = onnx.ModelProto()
        own.CopyFrom(source)  # the graph's tensors are views of the message, and renaming one would rename it in the caller's
        return from_proto(own)
    if isinstance(source, ir.Model):
        return _from_ir(source)
    if _is_module(source):
        return _from_module(source, example_inputs, type(source).__name__)
    raise Refused("read a model", found=f"a {type(source).__name__}",
                  do="give a path, bytes, an onnx.ModelProto, an onnx_ir.Model or a torch.nn.Module")


def _from_path(path: Path) -> ir.Model:
    asked, suffix = f"read {path}", path.suffix.lower()
    if not path.exists():
        return read_onnx(path)  # says that it is missing
    if suffix in _TORCH_FILES:
        raise Refused(asked, found="a PyTorch file holds weights, and the code of the model is needed too",
                      do=f"name the code: `package.module:callable --weights {path.name}`")
    if suffix in _OTHER_FORMATS:
        raise Unsupported(asked, found=f"it is {_OTHER_FORMATS[suffix]}, and this version reads ONNX and PyTorch", do="convert it to ONNX")
    if path.is_dir():
        raise _folder_error(path, asked)
    return read_onnx(path)


def _folder_error(path: Path, asked: str) -> WhetError:
    names = sorted(entry.name for entry in path.iterdir())
    if "saved_model.pb" in names:
        return Unsupported(asked, found="it is a TensorFlow SavedModel, and this version reads ONNX and PyTorch", do="convert it to ONNX")
    if any(name.endswith(".safetensors") for name in names):
        return Unsupported(asked, found="it is a Hugging Face checkpoint, and this version reads ONNX and PyTorch", do="export it to ONNX")
    models = [name for name in names if name.endswith(".onnx")]
    return Refused(asked, found="it is a folder", do=f"give the file: {path / models[0]}" if models else "give an .onnx file")


def _from_ir(model: ir.Model) -> ir.Model:
    try:
        return prepared(model.clone())
    except WhetError:
        raise
    except Exception as error:  # a model put together by hand may break any rule
        raise Refused("read the model", found=f"the model is not valid ({type(error).__name__}: {error})", do="correct it") from error


def _is_module(source: object) -> bool:
    import sys

    torch = sys.modules.get("torch")  # where torch was never imported nothing can be a module, and it is slow to import
    return torch is not None and isinstance(source, torch.nn.Module)


def _from_module(module: torch.nn.Module, example_inputs: Any, name: str) -> ir.Model:
    inputs = getattr(module, "example_inputs", None) if example_inputs is None else example_inputs
    inputs = inputs() if callable(inputs) else inputs
    if inputs is None:
        raise Refused(f"export {name}", found="a PyTorch module does not say which inputs it takes",
                      do="give example inputs (from Python), data (on the command line), or the module an attribute `example_inputs`")
    return from_torch(module, inputs)
