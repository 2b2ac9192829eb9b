"""Target: what the model must run on, as facts with their source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whet.core.document import Document, FrozenMap


@dataclass(frozen=True)
class Fact(Document):
    """Something known about a target. ``measured`` is true only for what was measured on that very kind of device."""

    claim: str
    source: str
    measured: bool = False


@dataclass(frozen=True)
class Speed(Document):
    """How a technique changes the time of an operator on this target: ``ratio`` = float time / new time (above 1 is faster)."""

    technique: str
    op: str
    ratio: float
    source: str
    measured: bool = False


@dataclass(frozen=True)
class Target(Document):
    """A device with its runtime.

    runtime: "onnxruntime", with ``providers`` in the order of preference. isa: the instructions that matter ("avx512-vnni").
    activation_dtype, weight_dtype: what static quantisation must use for the fast kernels. weight_bits: 7 where the instruction
    set saturates on full 8-bit products (AVX2/AVX512 without VNNI), else 8.
    symmetric_activations: zero point in the middle (what TensorRT and CMSIS-like kernels for int16 want).
    fused_ops: operators between DequantizeLinear and QuantizeLinear that the runtime really executes in integers.
    moving_ops: operators that only move data and run on integers where input and output share one grid.
    float16_ops: operators with a native float16 kernel that gains time; elsewhere float16 only saves bytes.
    nbits_ops: operators with a kernel for weights of 4 bits. speeds: measured or stated ratios, for plans only.
    weights_in_place: the runtime reads weights from storage and keeps none in memory (microcontrollers).
    memory_bytes, storage_bytes: what the device offers a model; None where the device decides.
    limits: gates that the target itself imposes, by the name of the measurement ("size_bytes").
    macs_per_s: int8 / float32 peak rates for estimates, 0 where unknown; bandwidth_bytes_per_s likewise.
    here: whether this is the machine that Whet runs on, so that latency and memory can be measured and not estimated.
    """

    name: str
    title: str
    runtime: str
    isa: str
    threads: int
    activation_dtype: str = "uint8"
    weight_dtype: str = "int8"
    weight_bits: int = 8
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    symmetric_activations: bool = False
    fused_ops: tuple[str, ...] = ()
    moving_ops: tuple[str, ...] = ()
    float16_ops: tuple[str, ...] = ()
    nbits_ops: tuple[str, ...] = ()
    speeds: tuple[Speed, ...] = ()
    weights_in_place: bool = False
    memory_bytes: int | None = None
    storage_bytes: int | None = None
    limits: Mapping[str, float] = field(default_factory=FrozenMap)
    macs_per_s: Mapping[str, float] = field(default_factory=FrozenMap)
    bandwidth_bytes_per_s: float = 0.0
    facts: tuple[Fact, ...] = ()
    here: bool = False

    def speed(self, technique: str, op: str) -> Speed | None:
        """The stated ratio of ``technique`` on ``op``; an entry for the operator "*" speaks for all that have none of their own."""
        own = [entry for entry in self.speeds if entry.technique == technique and entry.op in (op, "*")]
        return min(own, key=lambda entry: entry.op == "*", default=None)
