"""The tables of targets: whole, sourced, found by name or file, and never read with a silent mistake."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.core.errors import Refused
from whet.core.target import Target
from whet.device.machine import Machine, describe
from whet.device.targets import built_in_names, host, kind_of, target, targets

NAMES = built_in_names()


def machine(arch: str, isa: tuple[str, ...], *, cores: int = 3, memory_bytes: int = 5 << 30) -> Machine:
    return Machine(cpu="Some CPU", arch=arch, isa=isa, cores=cores, memory_bytes=memory_bytes, cache_bytes=0, os="", python="",
                   onnxruntime="", numpy="")  # fmt: skip


def measured(found: Target) -> bool:
    return any(fact.measured for fact in found.facts) or any(speed.measured for speed in found.speeds)


def written(folder: Path, text: str, name: str = "board.toml") -> str:
    (folder / name).write_text(text, "utf-8")
    return str(folder / name)


def test_there_are_the_targets_that_were_promised_and_this_machine_comes_first() -> None:
    found = targets()
    assert found[0].name == "host"
    assert {"x86-vnni", "x86", "arm64", "pi5", "jetson", "phone-npu", "mcu"} == {entry.name for entry in found[1:]}
    assert [entry.here for entry in found] == [True] + [False] * (len(found) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_source(name: str) -> None:
    found = target(name)
    assert found.facts
    assert all(fact.claim.strip() and len(fact.source) > 8 for fact in found.facts)
    assert all(speed.ratio > 0 and len(speed.source) > 8 for speed in found.speeds)
    assert found.extra == {}
    assert all(entry.extra == {} for entry in (*found.facts, *found.speeds))


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_consistent_and_survives_a_round_trip(name: str) -> None:
    found = target(name)
    assert found.name == name
    assert set(found.moving_ops) <= set(found.fused_ops)
    assert len(set(found.fused_ops)) == len(found.fused_ops)
    assert {"Conv", "Gemm", "MatMul", "Add"} <= set(found.fused_ops)
    assert Target.from_plain(json.loads(found.to_json())) == found


def test_only_the_kind_of_machine_that_was_measured_says_measured() -> None:
    assert {entry.name for entry in targets()[1:] if measured(entry)} == {"x86-vnni"}
    assert target("x86-vnni").speeds[0].measured


def test_weights_get_seven_bits_where_products_saturate() -> None:
    assert {name: target(name).weight_bits for name in NAMES} == {name: 7 if name == "x86" else 8 for name in NAMES}


def test_types_are_those_of_the_fast_kernels() -> None:
    types = {name: (target(name).activation_dtype, target(name).weight_dtype) for name in NAMES}
    assert types == {"x86-vnni": ("uint8", "int8"), "x86": ("uint8", "int8"), "arm64": ("uint8", "int8"), "pi5": ("uint8", "int8"),
                     "jetson": ("int8", "int8"), "phone-npu": ("uint8", "uint8"), "mcu": ("int8", "int8")}  # fmt: skip
    assert target("jetson").symmetric_activations


def test_what_is_known_to_be_slower_is_said_beforehand() -> None:
    known = target("x86-vnni")
    slower = [("dynamic", "Conv"), ("float16", "Conv"), ("float16", "MatMul"), ("static", "AveragePool")]
    assert all(known.speed(technique, op).ratio < 1 for technique, op in slower)  # type: ignore[union-attr]
    assert known.speed("static", "Conv").ratio > 2  # type: ignore[union-attr]
    assert known.speed("static", "Tanh") is None


def test_a_board_with_little_room_gates_on_it() -> None:
    assert target("mcu").limits["size_bytes"] == target("mcu").storage_bytes == 1 << 20
    assert target("mcu").memory_bytes == 256 << 10


def test_the_host_is_this_machine() -> None:
    here, this = target("host"), describe()
    assert here == host()
    assert (here.here, here.threads, here.memory_bytes) == (True, this.cores, this.memory_bytes)
    assert here.isa.split() == list(this.isa)
    assert set(here.providers) <= set(onnxruntime.get_available_providers())
    assert not here.macs_per_s
    assert not here.bandwidth_bytes_per_s


@pytest.mark.parametrize(
    ("arch", "isa", "kind"),
    [
        ("x86_64", ("avx2", "avx512_vnni"), "x86-vnni"),
        ("AMD64", ("avx2", "avx_vnni"), "x86-vnni"),
        ("x86_64", ("avx2", "avx512f"), "x86"),
        ("x86_64", (), "x86"),
        ("aarch64", ("neon", "asimddp"), "arm64"),
        ("arm64", ("neon",), "arm64"),
        ("riscv64", ("rvv",), "_onnxruntime-cpu"),
    ],
)
def test_the_host_gets_the_table_of_its_kind_of_processor(arch: str, isa: tuple[str, ...], kind: str) -> None:
    assert kind_of(arch, isa) == kind
    found = host(machine(arch, isa))
    assert (found.name, found.here, found.threads, found.memory_bytes) == ("host", True, 3, 5 << 30)
    assert found.weight_bits == (7 if kind == "x86" else 8)
    assert "Conv" in found.fused_ops
    if kind in NAMES:
        assert (found.fused_ops, found.speeds) == (target(kind).fused_ops, target(kind).speeds)


def test_memory_that_nobody_could_tell_is_none() -> None:
    assert host(machine("x86_64", (), memory_bytes=0)).memory_bytes is None


def test_a_file_of_ones_own_stands_alone(tmp_path: Path) -> None:
    text = 'title = "Mine"\nruntime = "onnxruntime"\nisa = "avx2"\nthreads = 2\nfused_ops = ["Conv"]\nlimits = {latency_ms = 5}\n'
    found = target(written(tmp_path, text))
    assert found == Target("board", "Mine", "onnxruntime", "avx2", 2, fused_ops=("Conv",), limits={"latency_ms": 5.0})
    assert target(written(tmp_path, text, "no_suffix")).name == "no_suffix"


def test_a_file_on_top_of_a_built_in_target(tmp_path: Path) -> None:
    found = target(written(tmp_path, """
        extends = "mcu"
        name = "sensor"
        threads = 1
        storage_bytes = 524288
        limits = {latency_ms = 40, size_bytes = 524288}
        facts = [{claim = "half the flash", source = "our schematic", measured = true}]
        """))  # fmt: skip
    base = target("mcu")
    assert (found.name, found.storage_bytes, found.runtime) == ("sensor", 524288, base.runtime)
    assert dict(found.limits) == {"size_bytes": 1 << 19, "latency_ms": 40.0}
    assert [fact.claim for fact in found.facts] == ["half the flash", *(fact.claim for fact in base.facts)]
    assert found.facts[0].measured
    joined = target(written(tmp_path, 'extends = "mcu"\nlimits = {latency_ms = 40}')).limits
    assert dict(joined) == {"size_bytes": 1 << 20, "latency_ms": 40.0}


def test_what_was_measured_on_another_device_is_not_measured_on_ones_own(tmp_path: Path) -> None:
    found = target(written(tmp_path, 'extends = "x86-vnni"\n[[speeds]]\ntechnique = "static"\nop = "Conv"\nratio = 1.5\nsource = "ours"'))
    assert found.speed("static", "Conv").ratio == 1.5  # type: ignore[union-attr]
    assert found.speed("dynamic", "Conv").ratio == target("x86-vnni").speed("dynamic", "Conv").ratio  # type: ignore[union-attr]
    assert not measured(found)
    assert target(written(tmp_path, 'extends = "pi5"')).here is False
    assert target(written(tmp_path, 'extends = "host"\nthreads = 1')).here is True


def test_a_file_on_top_of_a_file_beside_it(tmp_path: Path) -> None:
    written(tmp_path, 'extends = "pi5"\nthreads = 2', "base.toml")
    assert target(written(tmp_path, 'extends = "base.toml"\ntitle = "Box"')).threads == 2


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    one = written(tmp_path, 'extends = "two.toml"', "one.toml")
    written(tmp_path, 'extends = "one.toml"', "two.toml")
    with pytest.raises(Refused, match="extends itself"):
        target(one)


@pytest.mark.parametrize("name", ["pi4", "", "_onnxruntime-cpu", "../targets/pi5", "x" * 5000, "pi5\0"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(Refused, match=r"there are host, arm64, jetson, mcu, phone-npu, pi5, x86, x86-vnni"):
        target(name)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('extends = "pi5"\nweight_bit = 7', "unknown key 'weight_bit'.*write weight_bits"),
        ('extends = "pi5"\nhere = true', "unknown key 'here'"),
        ('extends = "pi5"\nfacts = [{claim = "x", source = "y", measurd = true}]', "unknown key 'measurd'"),
        ('extends = "pi5"\nspeeds = [{technique = "static", op = "Conv", ration = 2, source = "y"}]', "unknown key 'ration'"),
        ('extends = "pi6"', "extends 'pi6'"),
        ("extends = 5", "extends = 5"),
        ('extends = "gone.toml"', "gone.toml"),
        ('extends = "pi5"\nthreads = "four"', "the target board: Target.threads: 'four' where a whole number was expected"),
        ('extends = "pi5"\nthreads = 0', "threads = 0"),
        ('extends = "pi5"\nmemory_bytes = -1', "memory_bytes = -1"),
        ('extends = "pi5"\nlimits = {latency_ms = nan}', "limits.latency_ms.* nan"),
        ('extends = "pi5"\nlimits = 3', "a table was expected"),
        ('extends = "pi5"\nfacts = 3', "a list was expected"),
        ('extends = "pi5"\nfacts = ["x"]', "a table was expected"),
        ('extends = "pi5"\nweight_bits = 9', "weight_bits = 9"),
        ('extends = "pi5"\nactivation_dtype = "float8"', "activation_dtype = 'float8'"),
        ('extends = "jetson"\nmoving_ops = ["Reshape"]', "moving_ops names Reshape"),
        ("threads = 4", "the field 'title' is missing"),
        ("threads = ", "not valid TOML"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_the_mistake(text: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=found):
        target(written(tmp_path, text))


def test_what_is_no_table_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_bytes(b"\x08\xff\xfe" * 10)
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    (tmp_path / "folder.toml").mkdir()
    for name, reason in [("model.toml", "not UTF-8"), ("large.toml", "over 1 MiB"), ("folder.toml", "irectory"), ("gone.toml", "No such")]:
        with pytest.raises(Refused, match=reason):
            target(str(tmp_path / name))


@given(st.text(alphabet=st.characters(exclude_characters="/\\"), max_size=12))
def test_no_name_ends_in_anything_but_a_target_or_a_refusal(name: str) -> None:
    with contextlib.suppress(Refused):
        assert isinstance(target(name), Target)
