"""What this machine can do at best: products per second in float32 and int8, and bytes read per second. Measured, then kept.

A model's time cannot be less than its multiply-accumulates or its bytes take at these rates; how near it comes is its share of the
roofline (Williams, Waterman, Patterson: "Roofline", CACM 52(4), 2009). The products run in onnxruntime itself, because its kernels
are what a model gets: the limit is the runtime's on this machine, not the data sheet's.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from whet.core.document import Document, digest
from whet.core.errors import WhetError
from whet.core.progress import track
from whet.device.machine import Machine, describe, stamp, usable_cores
from whet.device.onnx_bytes import product_model
from whet.device.session import Array, open_session

_SIZES = (256, 512, 1024, 2048)  # of square products; kernels reach their rate at the larger ones
_PRODUCT_SECONDS = 1.0  # for all sizes of one dtype together
_READ_SECONDS = 0.6
_VERSION = 1  # raise it when the way of measuring changes, so that what is cached is measured again

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MachineLimits(Document):
    """The best rates seen: multiply-accumulates per second, bytes read per second from memory (not from a cache), with ``threads``.

    int8 is uint8 activations by int8 weights, the fast pair on x86.
    """

    float32_macs_per_s: float
    int8_macs_per_s: float
    bandwidth_bytes_per_s: float
    threads: int
    fingerprint: str
    device: str
    onnxruntime: str
    at: str
    method: str = ""

    @property
    def macs_per_s(self) -> Mapping[str, float]:
        """The rates by dtype, as ``Target.macs_per_s`` has them."""
        return {"float32": self.float32_macs_per_s, "int8": self.int8_macs_per_s}


def machine_limits(
    *, threads: int | None = None, refresh: bool = False, cache: Path | None = None, at: str | None = None
) -> MachineLimits:
    """The limits of this machine with ``threads`` (None: every usable core); under 5 seconds the first time, then from the cache.

    cache: the folder, else $WHET_CACHE, else ~/.cache/whet. The key is hardware, threads and onnxruntime's version. A cached file
    that is broken or speaks of another machine is measured again; a folder that cannot be written is no error. refresh: measure anyway.
    """
    machine, count = describe(), threads or usable_cores()
    path = (cache or cache_folder()) / f"limits-{digest([_VERSION, machine.fingerprint, count, machine.onnxruntime])[:16]}.json"
    known = None if refresh else _cached(path, machine, count)
    if known is None:
        known = _measure(machine, count, stamp(at).at)
        _keep(path, known)
    return known


def cache_folder() -> Path:
    """$WHET_CACHE, or ~/.cache/whet (or the temporary folder where a process has no home)."""
    if given := os.environ.get("WHET_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "whet"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "whet"


def _cached(path: Path, machine: Machine, threads: int) -> MachineLimits | None:
    try:
        limits = MachineLimits.from_json(path.read_bytes())
    except (OSError, WhetError):
        return None
    mine = (limits.fingerprint, limits.threads, limits.onnxruntime) == (machine.fingerprint, threads, machine.onnxruntime)
    rates = (limits.float32_macs_per_s, limits.int8_macs_per_s, limits.bandwidth_bytes_per_s)
    return limits if mine and min(rates) > 0 else None


def _keep(path: Path, limits: MachineLimits) -> None:
    """Written beside and moved into place, so that another process never reads half a file."""
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(limits.to_plain(), indent=2))
        beside.replace(path)
    except OSError as error:
        logger.info("machine limits are not cached: %s", error)
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _measure(machine: Machine, threads: int, at: str) -> MachineLimits:
    steps: dict[str, Callable[[], float]] = {
        "float32": lambda: _product_rate("MatMul", "float32", "float32", threads),
        "int8": lambda: _product_rate("MatMulInteger", "uint8", "int8", threads),
        "read": lambda: _read_rate(_buffer_bytes(machine), threads),
    }
    rates = {name: steps[name]() for name in track(tuple(steps), "measure the machine")}
    method = (
        f"best of several: square MatMul / MatMulInteger (u8s8) of {_SIZES[0]} to {_SIZES[-1]} in onnxruntime; "
        f"maximum over {_buffer_bytes(machine) >> 20} MiB in {threads} threads"
    )
    return MachineLimits(
        float32_macs_per_s=rates["float32"], int8_macs_per_s=rates["int8"], bandwidth_bytes_per_s=rates["read"], threads=threads,
        fingerprint=machine.fingerprint, device=machine.label, onnxruntime=machine.onnxruntime, at=at, method=method,
    )  # fmt: skip


def _product_rate(op: str, left: str, right: str, threads: int) -> float:
    """Multiply-accumulates per second of the best square product. A size that would not fit the time left is not begun."""
    generator = np.random.default_rng(0)
    end, best, last = perf_counter() + _PRODUCT_SECONDS, 0.0, 0.0
    for size in _SIZES:
        if perf_counter() + 8 * 3 * last > end and best > 0:  # eight times the work; a warm-up and two timings
            break
        feed, weights = _matrix(generator, size, left), _matrix(generator, size, right)
        session = open_session(product_model(op, size, left, weights), threads=threads)
        pause = min(end, perf_counter() + _PRODUCT_SECONDS / 2)
        last = _fastest(partial(session.run, None, {"x": feed}), until=pause)
        best = max(best, size**3 / last)
    return best


def _matrix(generator: np.random.Generator, size: int, dtype: str) -> Array:
    """Floats around zero (zeros or denormals may take other times); whole numbers over the dtype's range."""
    if dtype == "float32":
        return generator.standard_normal((size, size), dtype=np.float32)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, (size, size), dtype=dtype, endpoint=True)


def _read_rate(size_bytes: int, threads: int) -> float:
    """Bytes per second. numpy's maximum over int32 reads faster than its sum or BLAS's dot, and releases Python's lock."""
    parts = np.array_split(np.ones(size_bytes // 4, np.int32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return size_bytes / _fastest(lambda: list(pool.map(np.max, parts)), until=perf_counter() + _READ_SECONDS)


def _buffer_bytes(machine: Machine) -> int:
    """Eight times the last cache, 128 MiB to 1 GiB, and never more than an eighth of the memory."""
    wanted = min(max(8 * machine.cache_bytes, 2**27), 2**30)
    return min(wanted, (machine.memory_bytes or sys.maxsize) // 8) // 4096 * 4096


def _fastest(work: Callable[[], object], *, until: float) -> float:
    """Seconds of the fastest of at least two calls after one to warm up."""
    work()
    best, done = float("inf"), 0
    while done < 2 or (perf_counter() < until and done < 1000):
        begin = perf_counter()
        work()
        best, done = min(best, perf_counter() - begin), done + 1
    return best
