"""Opening a model in onnxruntime and running it, with every failure turned into a sentence that names what is wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from whet.core.artifact import TensorSpec
from whet.core.errors import Refused, Unsupported
from whet.device.machine import usable_cores

Array = NDArray[Any]

# Threads of a session go on spinning for 30 ms to 1.4 s after a run by default, and take the cores from whatever runs next: on two
# cores two interleaved sessions were measured 2x too slow. This stops them at the end of a run; within a run they still spin.
SPINNING_STOP = "session.force_spinning_stop"
# onnxruntime's names where they are not numpy's.
_DTYPES = {"float": "float32", "double": "float64"}
_SYNTHETIC = re.compile(r"(u?int\d+|float\d+|bool)")
# Where onnxruntime's messages name the node or the operator. Its wording is the only place that does: there is no field for it.
_CULPRITS = tuple(
    re.compile(pattern)
    for pattern in (
        r'In Node, \("(?P<node>[^"]*)", (?P<op>\w+),',
        r"of operator \((?P<op>\w+)\) in node \((?P<node>.*?)\)",
        r"running (?P<op>\w+) node\. Name:'(?P<node>[^']*)'",
        r"implementation for (?P<op>[\w.:]+)\(\d+\) node with name '(?P<node>[^']*)'",
        r"Node \((?P<node>.*?)\) Op \((?P<op>\w+)\)",
        r"Op with name \((?P<node>.*?)\).*?type \((?P<op>\w+)\)",
        r"(?P<op>[\w.]*:\w+)\(-?\d+\) is not a registered function/op",
        r"No Op registered for (?P<op>\w+)",
        r"Node input '(?P<node>[^']*)' is not a graph input",
    )
)


def open_session(
    model: bytes | str | os.PathLike[str],
    *,
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    profile_prefix: Path | None = None,
    optimized_to: Path | None = None,
    plan_memory: bool = True,
) -> onnxruntime.InferenceSession:
    """A session over a file or over the bytes of a model.

    threads: within an operator; None is every physical core that this process may use. Operators run one after the other.
    options: onnxruntime's session configuration entries, by their full key ("session.disable_quant_qdq"). SPINNING_STOP is "1" unless
    they say otherwise; it costs waking the threads (10 to 100 us) in each inference and changes no result.
    profile_prefix: turns onnxruntime's profiler on; its file gets this path with a time and ".json" appended.
    optimized_to: where onnxruntime writes the graph as it will execute it.
    plan_memory: False lets each tensor be allocated as it comes. Runs whose many outputs are large then hold half as much besides them.

    Raises Refused for a missing file, a bad number of threads or a provider that is not there; Unsupported where onnxruntime
    cannot load the model, naming node and operator where it does.
    """
    source = _readable(model)
    _check_providers(providers)
    settings = _settings(threads, options, profile_prefix, optimized_to)
    settings.enable_mem_pattern = plan_memory
    try:
        # Without enable_fallback=0 a provider that fails is replaced by the CPU's, and the wrong device would be measured.
        return onnxruntime.InferenceSession(source, settings, providers=list(providers), enable_fallback=0)
    except Exception as error:  # onnxruntime's errors share no class but Exception
        asked = f"load {_title(model)} in onnxruntime {onnxruntime.__version__}"
        raise Unsupported(asked, found=explain(error), do=_advice(str(error))) from error


def specs(session: onnxruntime.InferenceSession) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) in the order of the graph. dtypes by numpy's names; a size that is not fixed by its name, or "?"."""
    return tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs()))


def spins_after_run(session: onnxruntime.InferenceSession) -> bool:
    """Whether the session's threads keep the cores busy after a run, which spoils every measurement made next to it."""
    settings = session.get_session_options()

    def entry(name: str, default: str) -> str:
        try:
            return str(settings.get_session_config_entry(name))
        except RuntimeError:  # not set
            return default

    alone = settings.intra_op_num_threads == 1 or (settings.intra_op_num_threads == 0 and usable_cores() == 1)
    return not alone and entry(SPINNING_STOP, "0") != "1" and entry("session.intra_op.allow_spinning", "1") == "1"


def run(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
    """One inference: input name to array in, output name to array out (all outputs, or ``names``).

    Nothing is cast or reshaped. Raises Refused where a name, dtype or shape is not the model's, and Unsupported where the
    model fails while running.
    """
    outputs = tuple(argument.name for argument in session.get_outputs())
    wanted = outputs if names is None else tuple(names)
    for name in wanted:
        if name not in outputs:
            raise Refused(f"compute the output {name!r}", found=f"the model has {_listed(outputs)}", do="name one of its outputs")
    check_feeds(session, feeds)
    if not wanted:  # onnxruntime takes an empty list for all
        return {}
    try:
        return dict(zip(wanted, session.run(list(wanted), dict(feeds)), strict=True))
    except Exception as error:
        raise Unsupported("run the model", found=explain(error), do="check that it accepts inputs of this shape") from error


def check_feeds(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array]) -> None:
    """Refused where ``feeds`` are not what the session's model takes; the message names input, wanted and found."""
    inputs = {spec.name: spec for spec in map(_spec, session.get_inputs())}
    optional = {spec.name: spec for spec in map(_spec, session.get_overridable_initializers())}
    missing, unknown = [name for name in inputs if name not in feeds], [name for name in feeds if name not in inputs | optional]
    if missing or unknown:
        found = f"no value for {_listed(missing)}" if missing else f"a value for {_listed(unknown)}, which the model does not have"
        raise Refused("run the model", found=found, do=f"its inputs are {_listed(inputs)}")
    for name, value in feeds.items():
        _check_feed((inputs | optional)[name], value)


def example_feeds(inputs: Sequence[TensorSpec], *, batch: int = 1, seed: int = 0) -> dict[str, Array]:
    """Made-up inputs for a model that comes without data: good for speed and memory, meaningless for quality.

    The first size of an input that is not fixed becomes ``batch``, every other one 1. Floats are standard normal, whole numbers
    zero (so that an index is always valid), truth values False. Raises Unsupported for other dtypes (texts, sequences).
    """
    generator = np.random.default_rng(seed)
    return {spec.name: _example(spec, batch, generator) for spec in inputs}


def explain(error: BaseException) -> str:
    """onnxruntime's message on one line, with the node and operator in front where it names them."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    text = re.sub(r"(Load model from .*? failed:|Exception during (initialization|loading): |/\S+?\.(cc|h):\d+ .*?(\) |\] ))", "", text)
    text = text if len(text) <= 400 else text[:400] + "..."
    for pattern in _CULPRITS:
        # Failures inside branches are told from the outside in: the last one is where it happened.
        if matches := list(pattern.finditer(text)):
            named = matches[-1].groupdict()
            where = " ".join(f"{word} {named[kind]!r}" for kind, word in (("node", "node"), ("op", "operator")) if named.get(kind))
            return f"{where}: {text}" if where else text
    return text or type(error).__name__


def _readable(model: bytes | str | os.PathLike[str]) -> bytes | str:
    if isinstance(model, bytes):
        return model
    path = Path(model)
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise Refused(f"load {path}", found=found, do="give the path of an .onnx file")
    return str(path)


def _title(model: bytes | str | os.PathLike[str]) -> str:
    return "a model from memory" if isinstance(model, bytes) else str(Path(model))


def _check_providers(providers: Sequence[str]) -> None:
    available = onnxruntime.get_available_providers()
    absent = [name for name in providers if name not in available]
    if absent or not providers:
        raise Refused(
            f"run on {_listed(absent) or 'no provider at all'}",
            found=f"this onnxruntime has {_listed(available)}",
            do="choose one of those, or install the onnxruntime package built for that device",
        )


def _settings(
    threads: int | None, options: Mapping[str, str] | None, profile_prefix: Path | None, optimized_to: Path | None
) -> onnxruntime.SessionOptions:
    if threads is not None and threads < 1:
        raise Refused(f"run on {threads} threads", found="there must be at least 1", do="leave the number out to use every core")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what goes wrong comes as an exception; onnxruntime would also write it to the terminal
    settings.intra_op_num_threads = usable_cores() if threads is None else threads
    settings.inter_op_num_threads = 1
    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile_prefix)
    if optimized_to is not None:
        settings.optimized_model_filepath = str(optimized_to)
    for name, value in {SPINNING_STOP: "1", **(options or {})}.items():
        try:
            settings.add_session_config_entry(name, value)
        except Exception as error:
            raise Refused(f"set the session option {name[:80]!r}", found=explain(error), do="see onnxruntime's list of options") from error
    return settings


def _advice(message: str) -> str:
    if "protobuf" in message.lower() or "No graph was found" in message:
        return "the file is not an ONNX model, or was cut short: export or download it again"
    if "xternal data" in message:
        return "put the weight file that belongs to the model beside it"
    if "opset" in message.lower() or "IR version" in message:
        return "export it again for an opset that this onnxruntime knows"
    if "not a registered" in message or "No Op registered" in message:
        return "a custom operator needs its own library: export without it"
    return "check the model with onnx.checker, or export it again"


def _spec(argument: Any) -> TensorSpec:
    kind = re.fullmatch(r"tensor\((\w+)\)", argument.type)
    dtype = _DTYPES.get(kind[1], kind[1]) if kind else argument.type
    shape = tuple(size if isinstance(size, int) else size or "?" for size in argument.shape or ())
    return TensorSpec(name=argument.name, dtype=dtype, shape=shape)


def _check_feed(spec: TensorSpec, value: Array) -> None:
    asked = f"feed the input {spec.name!r}"
    if not isinstance(value, np.ndarray):
        raise Refused(asked, found=f"a {type(value).__name__}", do=f"give a numpy array of {spec.dtype} {_shape(spec.shape)}")
    text = spec.dtype == "string" and value.dtype.kind in "OUS"
    if not text and value.dtype.name != spec.dtype:
        raise Refused(asked, found=f"dtype {value.dtype.name}", do=f"the model takes {spec.dtype}; cast it on purpose")
    fits = len(value.shape) == len(spec.shape) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(spec.shape, value.shape, strict=True)
    )
    if not fits:
        raise Refused(asked, found=f"shape {_shape(value.shape)}", do=f"the model takes {_shape(spec.shape)}")


def _example(spec: TensorSpec, batch: int, generator: np.random.Generator) -> Array:
    if not _SYNTHETIC.fullmatch(spec.dtype):
        do = "give real inputs (an .npz with one array for each input)"
        raise Unsupported(f"make up a value for the input {spec.name!r}", found=f"it takes {spec.dtype}", do=do)
    unknown = [at for at, size in enumerate(spec.shape) if isinstance(size, str)]
    shape = [(batch if at == unknown[0] else 1) if isinstance(size, str) else size for at, size in enumerate(spec.shape)]
    dtype = np.dtype(spec.dtype)
    return np.asarray(generator.standard_normal(shape), dtype) if dtype.kind == "f" else np.zeros(shape, dtype)


def _shape(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names))
