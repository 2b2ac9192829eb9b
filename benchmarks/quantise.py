"""One way of quantising in a process of its own, so that its time and its peak memory are its own:

    python benchmarks/quantise.py WAY MODEL CALIBRATION OUT      prints {"seconds", "peak_bytes", "before_bytes"} as JSON

Ways: whet-static, ort-static, ort-static-u8s8, ort-dynamic. Seconds are those of the work, without imports; the peak is the whole
process's, and ``before_bytes`` what it held when its imports were done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import numpy as np


def whet_static(model: Path, calibration: Path, out: Path) -> Callable[[], None]:
    """``whet.apply("static")`` with its defaults."""
    import whet

    whet.apply, whet.target  # noqa: B018  imported now, so that the clock does not see it

    def work() -> None:
        whet.export(whet.apply(model, "static", calibration=calibration), out)

    import whet.compress.apply
    import whet.compress.export

    return work


def ort_static(model: Path, calibration: Path, out: Path, **options: object) -> Callable[[], None]:
    """onnxruntime's ``quantize_static``, QDQ, MinMax."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        """One sample at a time, as in onnxruntime's examples."""

        def __init__(self) -> None:
            with np.load(calibration) as arrays:
                self._samples = _samples({name: arrays[name] for name in arrays.files})

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._samples, None)

    return lambda: quantize_static(str(model), str(out), Reader(), **options)


def ort_static_u8s8(model: Path, calibration: Path, out: Path) -> Callable[[], None]:
    """The same with the types and the granularity that an expert would ask for on x86."""
    from onnxruntime.quantization import QuantType

    return ort_static(model, calibration, out, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True)


def ort_dynamic(model: Path, calibration: Path, out: Path) -> Callable[[], None]:
    """onnxruntime's ``quantize_dynamic`` with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    return lambda: quantize_dynamic(str(model), str(out))


WAYS = {"whet-static": whet_static, "ort-static": ort_static, "ort-static-u8s8": ort_static_u8s8, "ort-dynamic": ort_dynamic}


def main() -> None:
    way, model, calibration, out = sys.argv[1], *map(Path, sys.argv[2:5])
    work = WAYS[way](model, calibration, out)
    reset_peak()
    before = peak_bytes()
    began = perf_counter()
    work()
    print(json.dumps({"seconds": perf_counter() - began, "peak_bytes": peak_bytes(), "before_bytes": before}))


def peak_bytes() -> int:
    """The most resident memory since the last ``reset_peak``. (``getrusage`` would tell the parent's, which a child inherits.)"""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def reset_peak() -> None:
    """Set the high-water mark back to what is resident now (proc(5), clear_refs: 5)."""
    Path("/proc/self/clear_refs").write_text("5")


def _samples(arrays: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for at in range(len(next(iter(arrays.values())))):
        yield {name: values[at : at + 1] for name, values in arrays.items()}


if __name__ == "__main__":
    main()
