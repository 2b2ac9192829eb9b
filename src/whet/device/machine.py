"""What this machine is: processor, instructions, cores and memory that this process may really use, and the versions that compute.

Linux is asked through /proc and /sys, where containers' limits show too. Elsewhere a field that cannot be told is "" or 0.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import onnxruntime

from whet.core.document import Document, digest

ROOT = Path("/")
# The instructions that decide which kernels run, by /proc/cpuinfo's names; numpy's name where it is another one.
_ISA = {
    "sse4_2": "SSE42", "avx": "AVX", "avx2": "AVX2", "fma": "FMA3", "f16c": "F16C", "avx512f": "AVX512F", "avx512bw": "AVX512BW",
    "avx512vl": "AVX512VL", "avx512_vnni": "AVX512VNNI", "avx_vnni": "AVXVNNI", "avx512_bf16": "AVX512BF16",
    "avx512_fp16": "AVX512FP16", "amx_tile": "AMXTILE", "amx_int8": "AMXINT8", "amx_bf16": "AMXBF16",
    "neon": "NEON", "asimdhp": "ASIMDHP", "asimddp": "ASIMDDP", "i8mm": "I8MM", "bf16": "BF16", "sve": "SVE", "sve2": "SVE2",
    "sme": "SME", "rvv": "RVV",
}  # fmt: skip


@dataclass(frozen=True)
class Machine(Document):
    """cores: physical ones that this process may use (affinity and container quota counted). memory_bytes: likewise.

    cache_bytes: the last-level cache. isa: instructions by the kernel's names ("avx512_vnni", "asimddp"). 0 and "" are unknown.
    """

    cpu: str
    arch: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    cache_bytes: int
    os: str
    python: str
    onnxruntime: str
    numpy: str

    @property
    def fingerprint(self) -> str:
        """64 hex digits that stay the same as long as the hardware and this process's share of it do; versions do not count."""
        # Memory in GiB: the exact figure changes with the kernel.
        share = [self.cpu, self.arch, list(self.isa), self.cores, round(self.memory_bytes / 2**30)]
        return digest(share)

    @property
    def label(self) -> str:
        """What measurements carry as their device: the fingerprint's first twelve digits and the processor's name."""
        return f"{self.fingerprint[:12]} {self.cpu}".strip()


@dataclass(frozen=True)
class Stamp:
    """Where and when something was measured: ``Measurement.device`` and ``Measurement.at``."""

    device: str
    at: str


def stamp(at: str | None = None) -> Stamp:
    """This machine, and ``at`` (ISO 8601, UTC) or else the present second."""
    return Stamp(describe().label, at or datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"))


def describe(root: Path = ROOT) -> Machine:
    """This machine. ``root`` is where /proc and /sys are looked for."""
    return Machine(
        cpu=_cpu_name(root), arch=platform.machine().lower(), isa=_isa(root), cores=usable_cores(root),
        memory_bytes=_memory_bytes(root), cache_bytes=_cache_bytes(root), os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(), onnxruntime=onnxruntime.__version__, numpy=np.__version__,
    )  # fmt: skip


def usable_cores(root: Path = ROOT) -> int:
    """Physical cores that this process may use, at least 1. A quota of 2.5 cores counts as 2: a third thread would be throttled."""
    cores = len({_core_of(root, cpu) for cpu in _allowed_cpus()})
    quota = _quota_cores(root)
    return max(1, min(cores, int(quota)) if quota else cores)


def others_running(root: Path = ROOT, *, looks: int = 10, pause_s: float = 0.002) -> float | None:
    """How many threads besides the one that asks want a processor now: the mean of some looks at /proc/loadavg, in 20 ms.

    In a container these are the threads of the whole machine. None where the system does not tell.
    """
    found = []
    for look in range(looks):
        if look:
            sleep(pause_s)
        running = _read(root / "proc/loadavg").split()
        if len(running) < 4 or not running[3].partition("/")[0].isdigit():
            return None
        found.append(int(running[3].partition("/")[0]) - 1)
    return max(0.0, sum(found) / looks)


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS and Windows tell no core layout: logical ones are counted


def _core_of(root: Path, cpu: int) -> tuple[str, str]:
    """(package, core) of a logical processor; two hardware threads of one core share it."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    core = _read(topology / "core_id")
    return _read(topology / "physical_package_id"), core or f"cpu{cpu}"


def _quota_cores(root: Path) -> float | None:
    """The smallest processor quota of the control groups above this process; None without one."""
    quotas = []
    for folder in _cgroups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2: "200000 100000" or "max 100000"
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")  # version 1: -1 is none
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory_bytes(root: Path) -> int:
    """Physical memory, or the smallest limit of the control groups above this process where that is less."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    sizes = [int(found[1]) * 1024 if found else _memory_elsewhere()]
    for folder in _cgroups(root, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        sizes += [int(limit)] if limit.isdigit() else []
    return min(sizes)


def _memory_elsewhere() -> int:
    if platform.system() == "Darwin":
        size = _sysctl("hw.memsize")
        return int(size) if size.isdigit() else 0
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of all above it, for version 2 and version 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if names else "")
        inner = mount / path.strip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder == mount or mount in folder.parents)


def _cache_bytes(root: Path) -> int:
    sizes = [0]
    for size in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        if found := re.fullmatch(r"(\d+)([KMG]?)", _read(size)):
            sizes.append(int(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[found[2]])
    return max(sizes)


def _cpu_name(root: Path) -> str:
    info = _read(root / "proc/cpuinfo")
    for name in ("model name", "Hardware", "Model", "cpu model", "uarch"):  # x86; ARM boards; Raspberry Pi; MIPS; RISC-V
        if found := re.search(rf"^{name}\s*:\s*(.+)$", info, re.MULTILINE):
            return " ".join(found[1].split())
    board = _read(root / "proc/device-tree/model").strip("\0")
    if board or info:
        return board or platform.machine()
    return (_sysctl("machdep.cpu.brand_string") if platform.system() == "Darwin" else "") or platform.processor() or platform.machine()


def _isa(root: Path) -> tuple[str, ...]:
    info = _read(root / "proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    if found:
        flags = set(found[1].split())
        flags |= {"neon"} if "asimd" in flags else set()  # 64-bit ARM's name for it
        return tuple(name for name in _ISA if name in flags)
    config: Any = np.show_config(mode="dicts")  # its type says None, which is what the other modes give
    extensions = config.get("SIMD Extensions", {})
    known = {*extensions.get("baseline", ()), *extensions.get("found", ())}
    return tuple(name for name, numpys in _ISA.items() if numpys in known)


def _read(path: Path) -> str:
    """The text of a small file, "" where there is none or it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
