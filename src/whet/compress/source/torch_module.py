"""PyTorch modules to ``onnx_ir.Model`` through torch.export, checked against the module itself."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from whet.compress.source.onnx_file import prepared
from whet.compress.source.pooling import restore_pooling
from whet.compress.source.quiet import quiet
from whet.core.errors import Refused, Unsupported

if TYPE_CHECKING:
    import torch

NOTES = "whet.notes"  # in ``model.meta``: what the reader of an inventory should know; it is not saved with the model
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4
_logger = logging.getLogger(__name__)


def from_torch(module: torch.nn.Module, example_inputs: Any, *, dynamic_batch: bool = True, opset: int | None = None) -> ir.Model:
    """Export a module in evaluation mode; its mode, weights and gradients are afterwards as they were.

    example_inputs: one tensor, a tuple of tensors in the order of ``forward``, or a mapping by the names of its parameters; all with
    the batch first. They are run once to compare: Refused where the exported model differs from the module by more than
    1e-3 of the largest output. Inputs are named as in ``forward``; outputs "output" (one), "output_0"... (several), or by their
    keys where forward returns a dict.
    dynamic_batch: leave the size of the first dimension open, where torch.export allows it; else it stays as in the example and
    ``model.meta["whet.notes"]`` says so. opset: None takes the exporter's own (20 in torch 2.13).
    Raises Unsupported where torch.export cannot take the module.
    """
    asked = f"export {type(module).__name__}"
    with _in_evaluation(module):
        call = _call(module, example_inputs, asked)
        expected = _run(module, call, asked)
        model, axes = _exported(module, call, expected, dynamic_batch, opset, asked)
        _name_layers(model, frozenset(module.state_dict()))
        _own_weights(model)
        _name_interface(model, call, expected)
        restore_pooling(model)
        model = prepared(model, asked=asked)
        _compare(model, call, expected, asked)
        if axes:
            wider = call.repeated(axes, 3)
            _compare(model, wider, _run(module, wider, asked), asked)
    if dynamic_batch and not axes:
        note = f"the batch size is fixed to that of the example ({_batch(call.tensors)}): torch.export could not leave it open"
        model.meta[NOTES] = (note,)
        _logger.warning("%s: %s", asked, note)
    return model


@dataclass(frozen=True)
class _Call:
    """The arguments of ``forward``, in order. starred: they are its ``*args``, else they are passed by name."""

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    starred: bool

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.tensors, {}) if self.starred else ((), dict(zip(self.names, self.tensors, strict=True)))

    def repeated(self, axes: Mapping[int, int], times: int) -> _Call:
        """The same samples ``times`` over; axes: where each input has its batch."""
        import torch

        wider = tuple(torch.cat([t] * times, axes[i]) if i in axes else t for i, t in enumerate(self.tensors))
        return replace(self, tensors=wider)


@dataclass(frozen=True)
class _Result:
    """The outputs of ``forward``, flattened."""

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]


@contextmanager
def _in_evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every submodule is in its own mode again afterwards."""
    import torch

    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def _call(module: torch.nn.Module, example_inputs: Any, asked: str) -> _Call:
    import torch

    if isinstance(example_inputs, torch.Tensor | np.ndarray):
        example_inputs = (example_inputs,)
    parameters = list(inspect.signature(module.forward).parameters.values())
    try:
        if isinstance(example_inputs, Mapping):
            bound = inspect.Signature(parameters).bind(**example_inputs)
        else:
            bound = inspect.Signature(parameters).bind(*example_inputs)
    except TypeError as error:
        raise Refused(asked, found=f"the example inputs do not fit forward({', '.join(map(str, parameters))}): {error}",
                      do="give one tensor for each input, in the order of forward or by name") from error
    named: dict[str, Any] = {}
    for parameter in parameters:
        value = bound.arguments.get(parameter.name)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and value:
            named |= {f"{parameter.name}_{index}": item for index, item in enumerate(value)}
        elif value is not None:
            named[parameter.name] = value
    tensors = [torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value for value in named.values()]
    wrong = next((name for name, tensor in zip(named, tensors, strict=True) if not isinstance(tensor, torch.Tensor)), None)
    if wrong is not None or not tensors:
        raise Refused(asked, found=f"the example input {wrong!r} is no tensor" if wrong else "there are no example inputs",
                      do="give tensors only; wrap the module where forward takes other things")
    starred = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return _Call(tuple(named), tuple(tensor.detach() for tensor in tensors), starred)


def _run(module: torch.nn.Module, call: _Call, asked: str) -> _Result:
    """The module's outputs, flattened, with their names."""
    arguments, keywords = call.arguments()
    try:
        value = module(*arguments, **keywords)
    except Exception as error:  # the user's own code
        raise Refused(asked, found=f"the module fails on inputs of {[tuple(t.shape) for t in call.tensors]} ({_line(error)})",
                      do="give example inputs that the module accepts") from error
    flat = list(_flat(value, "", asked))
    names = [name or (f"output_{index}" if len(flat) > 1 else "output") for index, (name, _) in enumerate(flat)]
    return _Result(tuple(names), tuple(tensor for _, tensor in flat))


def _flat(value: Any, name: str, asked: str) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):  # dicts, and the outputs of Hugging Face models
        for key, item in value.items():
            yield from _flat(item, f"{name}_{key}" if name else str(key), asked)
    elif hasattr(value, "_fields"):
        yield from _flat(value._asdict(), name, asked)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}_{index}" if name else "", asked)
    elif value is not None:
        raise Unsupported(asked, found=f"forward returns a {type(value).__name__}", do="return tensors, or tuples and dicts of tensors")


def _exported(module: torch.nn.Module, call: _Call, expected: _Result, dynamic_batch: bool, opset: int | None,
              asked: str) -> tuple[ir.Model, dict[int, int]]:
    """The exporter's model, and along which axis each input has its open batch ({} where it is not open)."""
    error: Exception | None = None
    for axes in (*(_batch_axes(call.tensors) if dynamic_batch else ()), {}):
        try:
            model = _export(module, call, axes, opset, asked)
        except Exception as failure:  # torch.export raises many kinds
            error = failure
            continue
        if (len(model.graph.inputs), len(model.graph.outputs)) == (len(call.names), len(expected.names)):
            return model, axes
        error = RuntimeError("inputs or outputs got lost")
    raise Unsupported(asked, found=f"torch.export cannot export it ({_line(error)})",
                      do="make forward free of branches that depend on values of tensors, or export it to ONNX yourself")


def _batch_axes(tensors: Sequence[torch.Tensor]) -> list[dict[int, int]]:
    """Guesses at where the inputs have their batch, the likeliest first: axis 0; states of [layers, batch, size]; one input alone."""
    batch = _batch(tensors)
    front = {i: 0 for i, tensor in enumerate(tensors) if tensor.dim() and tensor.shape[0] == batch}
    first = min(front, default=-1)
    states = {i: 1 for i, tensor in enumerate(tensors) if i != first and tensor.dim() == 3 and tensor.shape[1] == batch}
    guesses = [front, front | states, {first: 0}] if batch else []
    return [guess for index, guess in enumerate(guesses) if guess not in guesses[:index]]


def _export(module: torch.nn.Module, call: _Call, axes: dict[int, int], opset: int | None, asked: str) -> ir.Model:
    import torch

    shapes: Any = None
    if axes:
        wider = call.repeated(axes, 2)
        _run(module, wider, asked)  # a wrong guess fails here, long before torch.export would find out
        call = wider if _batch(call.tensors) == 1 else call  # torch.export takes a size of 1 for a constant
        batch = torch.export.Dim("batch")
        each = [{axes[i]: batch} if i in axes else None for i in range(len(call.tensors))]
        shapes = (tuple(each),) if call.starred else dict(zip(call.names, each, strict=True))
    arguments, keywords = call.arguments()
    with quiet():
        program = torch.onnx.export(module, arguments, kwargs=keywords, dynamo=True, verbose=False, dynamic_shapes=shapes,
                                    opset_version=opset)
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    return program.model


def _own_weights(model: ir.Model) -> None:
    """Copies of the weights: training the module on must not change the exported model. The exporter's notes on code lines go."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            array = np.array(value.const_value.numpy(), copy=True)
            value.const_value = ir.Tensor(array, dtype=value.const_value.dtype, name=value.name)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph.all_nodes() for v in n.outputs)]:
        value.metadata_props.clear()
    model.metadata_props.clear()


def _name_interface(model: ir.Model, call: _Call, expected: _Result) -> None:
    wanted = [*zip(model.graph.inputs, call.names, strict=True), *zip(model.graph.outputs, expected.names, strict=True)]
    ends = {value for value, _ in wanted}
    taken = {name for _, name in wanted}
    for value in [*model.graph.initializers.values(), *(v for n in model.graph.all_nodes() for v in n.outputs)]:
        if value.name in taken and value not in ends:
            value.name = f"{value.name}_inside"
    for value, name in wanted:
        value.name = name


def _name_layers(model: ir.Model, weights: frozenset[str]) -> None:
    """A layer with weights is called as in the module: "features.0", not "node_Conv_12".

    Known by the name of its weight; where the exporter made a new tensor of it (a transposed one), by the scope that it notes.
    """
    taken = {node.name for node in model.graph}
    for node in model.graph:
        stored = [value for value in node.inputs if value is not None and value.const_value is not None]
        if node.op_type == "Add" or not any(value.dtype is not None and value.dtype.is_floating_point() for value in stored):
            continue  # a bias on its own belongs to the product before it
        owner = next((str(value.name).rpartition(".")[0] for value in stored if value.name in weights), "")
        if not owner and any(value.shape is not None and len(value.shape) >= 2 for value in stored):
            scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
            owner = scopes[-2] if len(scopes) >= 2 else ""
        if owner and owner not in taken:
            node.name = owner
            taken.add(owner)


def _compare(model: ir.Model, call: _Call, expected: _Result, asked: str) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
        feeds = {value.name: tensor.cpu().numpy() for value, tensor in zip(model.graph.inputs, call.tensors, strict=True)}
        results = session.run(None, feeds)
    except Exception as error:
        raise Unsupported(asked, found=f"onnxruntime cannot run the exported model ({_line(error)})",
                          do="replace the operator it names") from error
    for value, got, want in zip(model.graph.outputs, results, expected.tensors, strict=True):
        difference, allowed = _difference(np.asarray(got), want.cpu().numpy())
        if not difference <= allowed:
            raise Refused(asked, found=f"the exported model's {value.name!r} differs from the module's by {difference:.3g} (at most "
                          f"{allowed:.3g} is rounding)", do="look for randomness or state in forward; report it where there is none")


def _difference(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, float]:
    """The largest absolute difference and what is allowed; equal infinities and NaNs are no difference."""
    if got.shape != want.shape:
        return float("inf"), 0.0
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.abs(b[np.isfinite(b)])
    difference = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
    return float(difference.max(initial=0.0)), _ABSOLUTE + _RELATIVE * float(finite.max(initial=0.0))


def _batch(tensors: Sequence[torch.Tensor]) -> int:
    return next((int(tensor.shape[0]) for tensor in tensors if tensor.dim()), 0)


def _line(error: Exception | None) -> str:
    """The line of a torch error that says what is wrong, without colours and stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next((line for line in lines if line.startswith("<class ")), lines[0] if lines else type(error).__name__)
    return "".join(letter for letter in cause if letter.isprintable())[:300]
