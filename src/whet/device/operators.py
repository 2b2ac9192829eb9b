"""Which operators onnxruntime really executes after its own optimisation, and how long each takes.

A file says what was asked for; fusions, layout changes and casts make something else of it. Two sources tell: onnxruntime's profile (times,
executed nodes by operator name) and the graph that it writes after optimising (domains too, and branches that no input took).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from whet.core.document import Document
from whet.core.errors import Refused, Unsupported
from whet.device.onnx_bytes import operators_in
from whet.device.session import Array, open_session, run

_CPU = ("CPUExecutionProvider",)
_SUFFIX = "_kernel_time"
_WARMUP = 3


@dataclass(frozen=True)
class OperatorTime(Document):
    """One executed node. op: as executed ("QLinearConv" where Q, Conv and DQ were fused). mean_us: of one inference, every call of
    the node in it added up. share: of the time of all nodes, 0 to 1."""

    name: str
    op: str
    provider: str
    mean_us: float
    share: float


def operator_times(
    model: bytes | str | os.PathLike[str],
    feeds: Mapping[str, Array],
    *,
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
    providers: Sequence[str] = _CPU,
    repeats: int = 20,
) -> tuple[OperatorTime, ...]:
    """Time of each executed node, longest first, over ``repeats`` inferences after a few untimed ones.

    Each time is the mean of the middle half of the repeats, so that one disturbance does not make a hot spot. The profiler costs
    some us for each node: the sum is more than the latency, which ``interleave`` measures. A node inside If or Loop is counted
    beside the If or Loop that holds it. Raises what ``open_session`` and ``run`` raise.
    """
    if repeats < 1:
        raise Refused(f"time operators over {repeats} repeats", found="there must be at least 1", do="raise the number")
    with tempfile.TemporaryDirectory(prefix="whet-profile-") as folder:
        session = open_session(model, threads=threads, options=options, providers=providers, profile_prefix=Path(folder, "profile"))
        try:
            for _ in range(_WARMUP + repeats):
                run(session, feeds)
        finally:
            written = session.end_profiling()
        events = _events(Path(written))
    return _summed(events, repeats)


def executed_graph(
    model: bytes | str | os.PathLike[str],
    *,
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
    providers: Sequence[str] = _CPU,
) -> dict[tuple[str, str], int]:
    """How many nodes of each (domain, operator) onnxruntime executes after optimising, most frequent first. "" is ONNX's own domain.

    Needs no inputs: the graph is read from what onnxruntime writes, with the bodies of If and Loop. Needs room on disk for the
    model. Raises what ``open_session`` raises.
    """
    with tempfile.TemporaryDirectory(prefix="whet-graph-") as folder:
        path = Path(folder, "optimized.onnx")
        # Weights beside the graph: in one file they would fail above protobuf's 2 GB.
        beside = {"session.optimized_model_external_initializers_file_name": "weights.bin",
                  "session.optimized_model_external_initializers_min_size_in_bytes": "1024"}  # fmt: skip
        open_session(model, threads=threads, options={**(options or {}), **beside}, providers=providers, optimized_to=path)
        counts = Counter(("" if node.domain == "ai.onnx" else node.domain, node.op) for node in operators_in(path.read_bytes()))
    return dict(counts.most_common())


def _events(path: Path) -> list[dict[str, Any]]:
    """The profile's kernel events in the order of execution."""
    try:
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"), strict=False)
    except ValueError as error:
        raise Unsupported("read onnxruntime's profile", found=f"not valid JSON ({error})", do="give the nodes plainer names") from error
    return [event for event in events if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_SUFFIX)]


class _Node(NamedTuple):
    """What tells one executed node from another: names may repeat or be empty, so the index counts too."""

    name: str
    op: str
    provider: str
    position: str


def _summed(events: list[dict[str, Any]], repeats: int) -> tuple[OperatorTime, ...]:
    """One entry for every node, from the events of the warm-up and of ``repeats`` inferences."""
    durations: dict[_Node, list[float]] = {}
    for event in events:
        about = event.get("args", {})
        op, provider, position = (str(about.get(field, "")) for field in ("op_name", "provider", "node_index"))
        node = _Node(str(event["name"]).removesuffix(_SUFFIX), op, provider, position)
        durations.setdefault(node, []).append(float(event.get("dur", 0)))
    means = {node: _typical(times, repeats) for node, times in durations.items()}
    total = sum(means.values()) or 1.0
    found = [OperatorTime(node.name, node.op, node.provider, mean, mean / total) for node, mean in means.items()]
    return tuple(sorted(found, key=lambda entry: -entry.mean_us))


def _typical(times: list[float], repeats: int) -> float:
    """us in one inference: the mean of the middle half of the inferences after the warm-up."""
    runs = _WARMUP + repeats
    if len(times) % runs:  # inside a branch or a loop, not executed equally often in each: only the plain mean is left
        return sum(times) / runs
    whole = np.sort(np.reshape(times, (runs, -1)).sum(axis=1)[_WARMUP:])
    quarter = len(whole) // 4
    return float(whole[quarter : len(whole) - quarter].mean())
