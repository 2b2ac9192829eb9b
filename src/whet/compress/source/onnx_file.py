"""ONNX files, bytes and protos to ``onnx_ir.Model``: checked, inlined, in order, with a name on every node.

Nothing is executed here and no weight is changed: weights outside the file stay memory-mapped (``onnx_ir.ExternalTensor``).
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common as passes

from whet.compress.source.naming import name_nodes, name_values
from whet.compress.source.operators import check_operators, check_schemas
from whet.compress.source.owned import own_tensors
from whet.compress.source.payloads import Payloads, cut_out
from whet.compress.source.proto_checks import check_proto
from whet.compress.source.wire import refuse_bloated
from whet.core.errors import Refused, Unsupported, WhetError

MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
OLDEST_OPSET = 11
_MODERN_OPSETS = (13, 11)  # what an older model is converted to; 13 is where quantisation per channel begins
# onnxruntime 1.31 reads up to these. A model that only claims a newer version, and uses nothing of it, is relabelled.
_RUNTIME_OPSET, _RUNTIME_IR = 26, 13
_OLDEST_IR = 8  # where initializers are no inputs any more (4) and functions are known (8)


def read_onnx(path: str | os.PathLike[str]) -> ir.Model:
    """The model in an ``.onnx`` file, with weights beside it where it has them.

    Raises Refused where the file is missing, damaged, hostile or too large, Unsupported where it holds something that cannot be
    had; both within time and memory in proportion to the file. Weights in other files stay on disk until they are used.
    """
    path = Path(path)
    asked = f"read {path}"
    _check_file(path, asked)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
        return _read(data, asked, Path(os.path.abspath(path)).parent, file)


def read_onnx_bytes(data: bytes, *, asked: str = "read the model") -> ir.Model:
    """The model in the bytes of an ``.onnx`` file; its weights must be inside. Errors as in ``read_onnx``."""
    if not data:
        raise Refused(asked, found="it is empty", do="give an ONNX model")
    if len(data) > MAX_FILE_BYTES:
        raise Refused(asked, found=f"{len(data)} bytes; protobuf ends at 2 GB", do="save the weights as external data and give the path")
    with memoryview(data) as view:
        return _read(view, asked, None)


def from_proto(proto: onnx.ModelProto, *, folder: Path | None = None, asked: str = "read the model") -> ir.Model:
    """A ModelProto, checked and in the form that Whet works on. folder: where external data lies. Errors as in ``read_onnx``."""
    return _from_parts(proto, Payloads(), folder, asked)


def _read(data: memoryview, asked: str, folder: Path | None, file: BinaryIO | None = None) -> ir.Model:
    refuse_bloated(data, asked)
    rest, payloads = cut_out(data, file)
    proto = _parsed(rest, asked)
    if payloads.places and _is_old(proto):  # its conversion wants the weights inside
        proto, payloads = _parsed(data, asked), Payloads()
    return _from_parts(proto, payloads, folder, asked)


def _from_parts(proto: onnx.ModelProto, payloads: Payloads, folder: Path | None, asked: str) -> ir.Model:
    with _no_other_error(asked):
        _check_versions(proto, asked)
        check_proto(proto, folder, asked, payloads)
        model = ir.from_proto(_upgraded(proto, asked))
        if folder is not None:
            ir.external_data.set_base_dir(model.graph, folder)
        own_tensors(model, payloads)
        return prepared(model, asked=asked)


def prepared(model: ir.Model, *, asked: str = "read the model") -> ir.Model:
    """Inline functions, sort, name, and check operators. Changes the model and returns it; inputs and outputs keep their names.

    An initializer that is an input as well (every weight, before IR version 4) becomes a plain initializer.
    """
    if "ai.onnx" in model.opset_imports:
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    outputs = [value.name for value in model.graph.outputs]
    _inline(model, asked)
    passes.RemoveInitializersFromInputsPass()(model)
    _forget_negative_sizes(model.graph)
    _relabel(model)
    passes.TopologicalSortPass()(model)
    name_nodes(model.graph)
    name_values(model)
    check_operators(model, asked)
    check_schemas(model, asked)
    if [value.name for value in model.graph.outputs] != outputs:
        raise Unsupported(asked, found="its outputs lost their names when functions were inlined", do="export the model without functions")
    return model


def _check_file(path: Path, asked: str) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise Refused(asked, found=error.strerror or "it cannot be read", do="check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise Refused(asked, found="it is a folder", do="give the .onnx file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise Refused(asked, found="it is not an ordinary file", do="give an .onnx file")
    if status.st_size == 0:
        raise Refused(asked, found="it is empty", do="copy or export it again")
    if status.st_size > MAX_FILE_BYTES:
        raise Refused(asked, found=f"{status.st_size} bytes in one file; protobuf, and so ONNX, ends at 2 GB",
                      do="save the weights as external data (onnx.save(..., save_as_external_data=True))")
    if not os.access(path, os.R_OK):
        raise Refused(asked, found="there is no permission to read it", do="change its permissions")


def _parsed(data: memoryview | bytes, asked: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise Refused(asked, found="it is not an ONNX model, or it was cut off (protobuf cannot read it)",
                      do="copy or export it again") from error
    return proto


@contextmanager
def _no_other_error(asked: str) -> Iterator[None]:
    """The last net: what the libraries below raise on a file that passed every check of ours is still no traceback."""
    try:
        yield
    except WhetError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise Refused(asked, found=f"the model is not valid ({type(error).__name__}: {text})", do="export it again") from error


def _upgraded(proto: onnx.ModelProto, asked: str) -> onnx.ModelProto:
    """The same model in opset 13 (or 11) where it is older than 11."""
    if not _is_old(proto):
        return proto
    message = ""
    for target in _MODERN_OPSETS:
        try:
            return _names_kept(proto, onnx.version_converter.convert_version(proto, target))
        except Exception as error:  # the converter raises RuntimeError, ConvertError and others
            message = " ".join(str(error).split())[:300]
    raise Unsupported(asked, found=f"its operator set {_opset(proto)} is older than {OLDEST_OPSET} and onnx cannot convert it ({message})",
                      do=f"export it with opset {_MODERN_OPSETS[0]} or newer")


def _is_old(proto: onnx.ModelProto) -> bool:
    version = _opset(proto)
    return version is not None and version < OLDEST_OPSET


def _opset(proto: onnx.ModelProto) -> int | None:
    return next((opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")), None)


def _check_versions(proto: onnx.ModelProto, asked: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    version = max((opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")), default=newest)
    if version > newest or proto.ir_version > onnx.IR_VERSION:
        raise Unsupported(asked, found=f"operator set {version} and file version {proto.ir_version}; onnx {onnx.__version__} knows them up "
                          f"to {newest} and {onnx.IR_VERSION}", do="export it for an older operator set, or install a newer onnx")


def _names_kept(old: onnx.ModelProto, new: onnx.ModelProto) -> onnx.ModelProto:
    names = [[value.name for value in values] for values in (old.graph.output, new.graph.output)]
    if names[0] != names[1]:
        raise ValueError("the conversion renames outputs")
    return new


def _inline(model: ir.Model, asked: str) -> None:
    if not model.functions:
        return
    for function in model.functions.values():
        name_nodes(function.graph)
    try:
        passes.InlinePass()(model)
    except Exception as error:
        raise Unsupported(asked, found=f"its functions cannot be inlined ({error})", do="export the model without functions") from error
    model.functions.clear()


def _forget_negative_sizes(graph: ir.Graph) -> None:
    """Some exporters write -1 for a size that is not fixed."""
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None and any(isinstance(size, int) and size < 0 for size in value.shape):
            value.shape = ir.Shape([None if isinstance(size, int) and size < 0 else size for size in value.shape])


def _relabel(model: ir.Model) -> None:
    model.ir_version = min(max(model.ir_version or 0, _OLDEST_IR), _RUNTIME_IR)
    version = model.opset_imports.get("", 0)
    if _RUNTIME_OPSET < version <= onnx.defs.onnx_opset_version():
        used = {node.op_type for node in model.graph.all_nodes() if node.domain == ""}
        if all(_since(op, version) == _since(op, _RUNTIME_OPSET) for op in used):
            model.opset_imports[""] = _RUNTIME_OPSET


def _since(op: str, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(op, version, "").since_version)
    except onnx.defs.SchemaError:
        return -1
