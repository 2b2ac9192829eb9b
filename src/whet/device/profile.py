"""Profile: everything that is measured of one model on this machine, in one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from whet.core.document import Document
from whet.core.errors import Refused
from whet.core.measurement import Interval, Measurement
from whet.core.progress import task
from whet.device.energy import energy
from whet.device.latency import Latency, interleave
from whet.device.machine import Machine, Stamp, describe, stamp
from whet.device.machine_limits import MachineLimits
from whet.device.memory import disk_size, memory_use
from whet.device.operators import OperatorTime, operator_times
from whet.device.session import Array, example_feeds, open_session, specs

# The rate that bounds products of a dtype: float16 is computed through float32 on these processors, 4 bits through 8.
_RATE_OF = {"float32": "float32", "float16": "float32", "bfloat16": "float32", "int8": "int8", "uint8": "int8", "int4": "int8",
            "uint4": "int8", "int2": "int8", "uint2": "int8"}  # fmt: skip


@dataclass(frozen=True)
class Profile(Document):
    """roofline: "roofline_share", the least time that the machine's limits allow / the median latency; 1 is perfect.

    synthetic: whether the inputs were made up. limits: what the share is of; None where none were given.
    """

    machine: Machine
    latency: Latency
    size: Measurement
    peak_rss: Measurement
    model_rss: Measurement
    energy: Measurement
    roofline: Measurement
    operators: tuple[OperatorTime, ...]
    synthetic: bool = False
    limits: MachineLimits | None = None

    @property
    def measurements(self) -> dict[str, Measurement]:
        """All numbers by name. The latency ratio is left out: alone, a model has no parent."""
        speed = (self.latency.median, self.latency.p95, self.latency.throughput)
        return {one.name: one for one in (*speed, self.size, self.peak_rss, self.model_rss, self.energy, self.roofline)}


def profile(
    model: Path,
    *,
    feeds: Mapping[str, Array] | None = None,
    threads: int | None = None,
    options: Mapping[str, str] | None = None,
    limits: MachineLimits | None = None,
    seconds: float = 2.0,
    macs: int | Mapping[str, int] | None = None,
    weight_bytes: int | None = None,
    files: Sequence[Path] = (),
    at: str | None = None,
) -> Profile:
    """Measure one model file: latency, size, memory, energy, operators and the share of the roofline.

    feeds: one inference's inputs; None makes some up. macs: multiply-accumulates of that inference by dtype (a plain number is
    float32's); without them neither the roofline nor an estimate of energy can be told, and the measurements say so.
    weight_bytes: of all weights, as stored. files: those beside ``model`` that belong to it (external weights), for the size.
    seconds: for the latency. Raises what ``open_session`` and ``run`` raise.
    """
    where, machine = stamp(at), describe()
    _check_limits(limits, machine.cores if threads is None else threads)
    counted = {"float32": macs} if isinstance(macs, int) else macs
    with task("profile", 4) as progress:
        session = open_session(model, threads=threads, options=options)
        given = dict(feeds) if feeds is not None else example_feeds(specs(session)[0])
        latency = interleave({"model": session}, {"model": given}, parent="model", seconds=seconds, at=where.at)["model"]
        progress.advance(note="latency")
        spent = energy(session, given, macs=counted, bytes_moved=weight_bytes, seconds=min(seconds, 1.2), at=where.at)
        progress.advance(note="energy")
        peak, growth = memory_use(model, feeds=given, threads=threads, options=options, at=where.at)
        progress.advance(note="memory")
        operators = operator_times(model, given, threads=threads, options=options)
        progress.advance(note="operators")
    return Profile(
        machine=machine, latency=latency, size=disk_size([model, *files], at=where.at), peak_rss=peak, model_rss=growth, energy=spent,
        roofline=roofline_share(latency.median, counted, weight_bytes, limits, machine.cache_bytes, where), operators=operators,
        synthetic=feeds is None, limits=limits,
    )  # fmt: skip


def roofline_share(
    median: Measurement,
    macs: Mapping[str, int] | None,
    weight_bytes: int | None,
    limits: MachineLimits | None,
    cache_bytes: int,
    where: Stamp,
) -> Measurement:
    """``roofline_share``: the least time that ``limits`` allow / ``median`` (ms). The least time is the larger of two: all products at
    their dtype's rate, and all weights at the bandwidth.

    Weights that fit into the last cache (``cache_bytes``) stay there between inferences, and the bandwidth does not bind them. Raises
    Refused for a dtype that has no rate.
    """
    share = Measurement("roofline_share", None, direction="higher", device=where.device, at=where.at)
    if macs is None or limits is None or not median.value:
        lacking = "this model's multiply-accumulates" if macs is None else "the limits of this machine"
        return replace(share, why=f"{lacking} are not known" if median.value or macs is None or limits is None else median.why)
    unknown = [dtype for dtype in macs if dtype not in _RATE_OF]
    if unknown:
        raise Refused("tell the share of the roofline", found=f"no rate for {unknown[0]}", do=f"count products as {', '.join(_RATE_OF)}")
    products_ms = 1000 * sum(count / limits.macs_per_s[_RATE_OF[dtype]] for dtype, count in macs.items())
    streamed = weight_bytes if weight_bytes is not None and weight_bytes > cache_bytes else 0
    weights_ms = 1000 * streamed / limits.bandwidth_bytes_per_s
    least_ms = max(products_ms, weights_ms)
    span = median.interval
    return replace(
        share, value=least_ms / median.value, n=median.n,
        interval=Interval(least_ms / span.high, least_ms / span.low, span.confidence) if span else None,
        method=f"least time {least_ms:.4g} ms ({'weights' if weights_ms > products_ms else 'products'} bind) / median latency",
    )  # fmt: skip


def _check_limits(limits: MachineLimits | None, threads: int) -> None:
    if limits is not None and limits.threads != threads:
        raise Refused(f"profile on {threads} threads", found=f"the limits were measured on {limits.threads}",
                      do=f"take machine_limits(threads={threads})")  # fmt: skip
