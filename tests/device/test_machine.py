from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from whet.device import machine
from whet.device.machine import Machine, describe, stamp, usable_cores

X86 = "processor\t: 0\nmodel name\t: Some  CPU @ 3GHz\nflags\t\t: fpu avx2 avx512f avx512_vnni zzz\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp i8mm\nModel\t\t: Raspberry Pi 5 Model B\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_this_machine() -> None:
    here = describe()
    assert here == describe()
    assert here.cpu
    assert here.arch == platform.machine().lower()
    assert 1 <= here.cores <= (os.cpu_count() or 1)
    assert here.memory_bytes > 2**28
    assert here.numpy == np.__version__
    assert Machine.from_json(here.to_json()) == here
    assert here.label.startswith(here.fingerprint[:12])


def test_the_fingerprint_follows_the_hardware_and_not_the_versions() -> None:
    here = describe()
    same = replace(here, os="other", python="4", onnxruntime="9", numpy="9", memory_bytes=here.memory_bytes + 4096)
    assert same.fingerprint == here.fingerprint
    others = [replace(here, cpu="x"), replace(here, cores=here.cores + 1), replace(here, isa=()), replace(here, memory_bytes=2**31)]
    assert len({here.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_x86_is_read_from_cpuinfo(tmp_path: Path) -> None:
    found = describe(write(tmp_path, {"proc/cpuinfo": X86, "proc/meminfo": "MemTotal:  1000 kB\n"}))
    assert (found.cpu, found.isa, found.memory_bytes) == ("Some CPU @ 3GHz", ("avx2", "avx512f", "avx512_vnni"), 1_024_000)


def test_arm_is_read_from_cpuinfo(tmp_path: Path) -> None:
    found = describe(write(tmp_path, {"proc/cpuinfo": ARM, "proc/meminfo": "MemTotal:  1000 kB\n"}))
    assert found.cpu == "Raspberry Pi 5 Model B"
    assert found.isa == ("neon", "asimdhp", "asimddp", "i8mm")


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    cache = "sys/devices/system/cpu/cpu0/cache/"
    root = write(tmp_path, {cache + "index0/size": "48K", cache + "index3/size": "32M", cache + "index2/size": "1024K"})
    assert describe(root).cache_bytes == 32 * 2**20
    assert describe(tmp_path / "empty").cache_bytes == 0


def four_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str] | None = None) -> Path:
    """Four logical processors on two physical cores."""
    monkeypatch.setattr(machine, "_allowed_cpus", lambda: {0, 1, 2, 3})
    topology = "sys/devices/system/cpu/cpu{}/topology/"
    cores = {topology.format(cpu) + "core_id": str(cpu % 2) for cpu in range(4)}
    packages = {topology.format(cpu) + "physical_package_id": "0" for cpu in range(4)}
    return write(tmp_path, {**cores, **packages, **(files or {})})


def test_two_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores(four_threads(tmp_path, monkeypatch)) == 2


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = four_threads(tmp_path, monkeypatch)
    monkeypatch.setattr(machine, "_allowed_cpus", lambda: {0, 2})
    assert usable_cores(root) == 1


def test_without_a_topology_every_logical_processor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_allowed_cpus", lambda: {0, 1, 2})
    assert usable_cores(tmp_path) == 3


V1 = "sys/fs/cgroup/cpu/cpu.cfs_"


@pytest.mark.parametrize(("files", "cores"), [
    ({"proc/self/cgroup": "0::/app/inner\n", "sys/fs/cgroup/app/cpu.max": "150000 100000\n"}, 1),  # a group above, version 2
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),  # half a core is still one thread
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 2),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "900000 100000\n"}, 2),
    ({"proc/self/cgroup": "4:cpu,cpuacct:/\n", V1 + "quota_us": "100000", V1 + "period_us": "100000"}, 1),
    ({"proc/self/cgroup": "4:cpu:/\n", V1 + "quota_us": "-1", V1 + "period_us": "100000"}, 2),
])
def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int) -> None:
    assert usable_cores(four_threads(tmp_path, monkeypatch, files)) == cores


@pytest.mark.parametrize(("files", "size"), [
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000000\n"}, 1_000_000),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 2_048_000),
    ({"proc/self/cgroup": "7:memory:/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, 2_048_000),
    ({"proc/self/cgroup": "7:memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "5000"}, 5000),
])
def test_a_containers_memory_counts(tmp_path: Path, files: dict[str, str], size: int) -> None:
    assert describe(write(tmp_path, {"proc/meminfo": "MemTotal:  2000 kB\n", **files})).memory_bytes == size


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_do_not_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    def no_command(*_: object, **__: object) -> None:
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(subprocess, "run", no_command)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sysconf")
    found = describe(tmp_path)  # no /proc, no /sys
    assert found.cores >= 1
    assert found.memory_bytes == 0
    assert found.os.startswith(system)


def test_a_mac_is_asked_by_sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"hw.memsize": "17179869184\n", "machdep.cpu.brand_string": "Apple M2\n"}
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, answers[command[-1]], ""))
    found = describe(tmp_path)
    assert (found.cpu, found.memory_bytes) == ("Apple M2", 2**34)


def test_a_stamp_takes_the_time_that_is_given() -> None:
    assert stamp("2026-01-02T03:04:05Z").at == "2026-01-02T03:04:05Z"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stamp().at)
    assert stamp().device == describe().label


@pytest.mark.parametrize(
    ("told", "others"), [("0.5 0.4 0.3 4/116 17739", 3.0), ("9 9 9 1/20 3", 0.0), ("", None), ("0.1 0.2", None), ("a b c d e", None)]
)
def test_threads_of_others_are_counted_without_the_one_that_asks(tmp_path: Path, told: str, others: float | None) -> None:
    root = write(tmp_path, {"proc/loadavg": told})
    assert machine.others_running(root, pause_s=0.0) == others


def test_threads_of_others_are_the_mean_of_some_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"proc/loadavg": "0 0 0 1/9 1"}) / "proc/loadavg"
    monkeypatch.setattr(machine, "sleep", lambda _: path.write_text("0 0 0 5/9 1"))
    assert machine.others_running(tmp_path, looks=4) == pytest.approx(3.0)  # 0, 4, 4, 4
