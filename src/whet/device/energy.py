"""Energy of one inference: from the processor's own counter (RAPL) where the kernel shows it, else from a stated model.

The model counts multiply-accumulates and bytes and prices them as Horowitz does ("Computing's energy problem (and what we can do
about it)", ISSCC 2014, 45 nm, 0.9 V). Instructions, caches and leakage are left out, so the figure is a lower bound for a 45 nm chip
and good for comparing two models, not for sizing a battery.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime

from whet.core.errors import Refused
from whet.core.measurement import Interval, Measurement
from whet.device.latency import collector_off
from whet.device.machine import Stamp, stamp
from whet.device.session import Array, run

POWERCAP = Path("/sys/class/powercap")
# pJ of one multiply-accumulate: multiplication + addition, Horowitz' figures. An int8 product is added in int32.
MAC_PJ = {"float32": 3.7 + 0.9, "float16": 1.1 + 0.4, "int8": 0.2 + 0.1}
# Small whole numbers are widened to 8 bits by the kernels.
_PRICED_AS = {"bfloat16": "float16", "uint8": "int8", "int4": "int8", "uint4": "int8", "int2": "int8", "uint2": "int8"}
DRAM_PJ_PER_BYTE = (1300 / 8, 2600 / 8)  # DRAM: 1.3 to 2.6 nJ for 64 bits
WINDOWS = 6  # smallest..largest of six independent windows holds the median with 1 - 2^-5 = 97 %


@dataclass(frozen=True)
class Domain:
    """A RAPL package: the counter's file (uJ) and the value at which it starts again from 0."""

    name: str
    counter: Path
    range_uj: int


def energy(
    session: onnxruntime.InferenceSession,
    feeds: Mapping[str, Array],
    *,
    macs: Mapping[str, int] | None = None,
    bytes_moved: int | None = None,
    seconds: float = 1.2,
    powercap: Path = POWERCAP,
    at: str | None = None,
) -> Measurement:
    """``energy_mj``: millijoules of one inference. Measured where RAPL can be read, else estimated where ``macs`` (by dtype) and
    ``bytes_moved`` are given, else without a value, saying why. Raises what ``run`` raises."""
    where = stamp(at)
    measured = rapl_energy(session, feeds, seconds=seconds, powercap=powercap, at=where.at)
    if measured.value is not None or macs is None or bytes_moved is None:
        return measured
    try:
        return estimated_energy(macs, bytes_moved, at=where.at)
    except Refused as error:
        return _nothing(where, f"{measured.why}; {error}")


def rapl_energy(
    session: onnxruntime.InferenceSession,
    feeds: Mapping[str, Array],
    *,
    seconds: float = 1.2,
    powercap: Path = POWERCAP,
    at: str | None = None,
) -> Measurement:
    """``energy_mj`` of all processor packages while inferences run one after the other, idle power included, other processes' too.

    The median of six windows of ``seconds`` / 6 each. Without RAPL (or the right to read it) the value is None and ``why`` says so.
    """
    where = stamp(at)
    try:
        domains = packages(powercap)
        if not domains:
            return _nothing(where, f"this machine shows no energy counter ({powercap} has no package domain)")
        for domain in domains:
            _read_uj(domain)
    except PermissionError as error:
        return _nothing(where, f"the energy counter may not be read ({error.filename}); run as root or change its rights")
    except (OSError, ValueError) as error:
        return _nothing(where, f"the energy counter cannot be read ({error})")
    run(session, feeds)
    given, windows, total = dict(feeds), [], 0
    with collector_off():
        for _ in range(WINDOWS):
            spent_mj, count = _window(session, given, domains, seconds / WINDOWS)
            windows.append(spent_mj / count)
            total += count
    names = ", ".join(domain.name for domain in domains)
    return Measurement(
        "energy_mj", float(np.median(windows)), unit=" mJ", n=total, device=where.device, at=where.at,
        interval=Interval(min(windows), max(windows), 1 - 2 ** (1 - WINDOWS)),
        method=f"RAPL ({names}) over {WINDOWS} windows of back-to-back inferences, idle power included",
    )  # fmt: skip


def estimated_energy(macs: Mapping[str, int], bytes_moved: int, *, at: str | None = None) -> Measurement:
    """``energy_mj`` by the stated model. macs: multiply-accumulates of one inference by dtype; bytes_moved: to and from DRAM.

    Raises Refused for a dtype without a price and for negative counts.
    """
    priced = {dtype: _PRICED_AS.get(dtype, dtype) for dtype in macs}
    unknown = [dtype for dtype, name in priced.items() if name not in MAC_PJ]
    if unknown or min([bytes_moved, *macs.values()]) < 0:
        found = f"no published price for {unknown[0]} products" if unknown else "a count is negative"
        raise Refused("estimate energy", found=found, do=f"count products as {', '.join(sorted(MAC_PJ))}")
    products_pj = math.fsum(MAC_PJ[priced[dtype]] * count for dtype, count in macs.items())
    low, high = (price * bytes_moved for price in DRAM_PJ_PER_BYTE)
    where = stamp(at)
    counts = ", ".join(f"{count} {dtype}" for dtype, count in macs.items()) or "no"
    return Measurement(
        "energy_mj", (products_pj + (low + high) / 2) / 1e9, unit=" mJ", source="estimated", device=where.device, at=where.at,
        method=f"Horowitz, ISSCC 2014, 45 nm: {counts} multiply-accumulates {products_pj / 1e9:.3g} mJ; {bytes_moved} bytes of DRAM "
        f"{low / 1e9:.3g} to {high / 1e9:.3g} mJ (its middle is taken); instructions, caches and leakage left out",
    )  # fmt: skip


def packages(powercap: Path = POWERCAP) -> tuple[Domain, ...]:
    """RAPL's package domains. Their parts (core, uncore, dram) lie inside them and ``psys`` around them, so neither is added.

    Raises OSError or ValueError where a file that must be there cannot be read.
    """
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):  # AMD's too, in spite of the name
        name = (folder / "name").read_text().strip()
        if name.startswith("package"):
            found.append(Domain(name, folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())))
    return tuple(found)


def spent_uj(before: int, after: int, range_uj: int) -> int:
    """The difference of two readings of a counter that starts again from 0 after ``range_uj`` (at most once between them)."""
    return after - before if after >= before else after + range_uj - before


def _window(
    session: onnxruntime.InferenceSession, feeds: dict[str, Array], domains: tuple[Domain, ...], seconds: float
) -> tuple[float, int]:
    """(mJ, inferences) of at least ``seconds``. RAPL's counter moves about once in a ms, so a window should be far longer."""
    before = [_read_uj(domain) for domain in domains]
    end, count = perf_counter() + seconds, 0
    while count == 0 or perf_counter() < end:
        session.run(None, feeds)
        count += 1
    spent = [spent_uj(b, _read_uj(domain), domain.range_uj) for b, domain in zip(before, domains, strict=True)]
    return sum(spent) / 1000, count


def _read_uj(domain: Domain) -> int:
    return int(domain.counter.read_text())


def _nothing(where: Stamp, why: str) -> Measurement:
    return Measurement("energy_mj", None, unit=" mJ", device=where.device, at=where.at, method="RAPL", why=why)
