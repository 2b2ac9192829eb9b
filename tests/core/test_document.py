"""Documents: nothing is lost on the way to JSON or TOML and back, equal things have equal hashes, and bad input is Refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.words import ANY_WORD, JSON, WORDS

from whet.core.artifact import Artifact, ModelFile
from whet.core.document import Document, FrozenMap, canonical_json, digest, freeze, parse_json, plain_of
from whet.core.errors import Refused
from whet.core.gate import Gate
from whet.core.inventory import Layer
from whet.core.measurement import Interval, Measurement
from whet.core.recipe import Recipe, Step
from whet.core.target import Target
from whet.core.toml import parse_toml, to_toml

KINDS = st.sampled_from(list(WORDS))


def holds_none(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(holds_none, value.values()))
    return any(map(holds_none, value)) if isinstance(value, list) else value is None


def shuffled(value: Any, seed: random.Random) -> Any:
    """The same tables with their keys in another order, at every level."""
    if isinstance(value, dict):
        items = [(name, shuffled(item, seed)) for name, item in value.items()]
        seed.shuffle(items)
        return dict(items)
    return [shuffled(item, seed) for item in value] if isinstance(value, list) else value


@given(ANY_WORD)
def test_json_round_trip_keeps_everything(word: Document) -> None:
    again = type(word).from_json(word.to_json())
    assert again == word
    assert again.digest == word.digest
    assert again.to_json() == type(word).from_json(again.to_json(indent=None)).to_json()
    assert type(word).from_json(word.to_json().encode()) == word


@given(ANY_WORD)
def test_toml_round_trip_keeps_everything_but_none(word: Document) -> None:
    plain = word.to_plain()
    if holds_none(plain):
        with pytest.raises(Refused, match="TOML cannot hold"):
            to_toml(plain)
        return
    again = type(word).from_plain(parse_toml(to_toml(plain), what="a test"))
    assert again == word
    assert again.digest == word.digest


@given(ANY_WORD)
def test_words_are_values(word: Document) -> None:
    same = pickle.loads(pickle.dumps(word))
    assert same == word
    assert hash(same) == hash(word)
    assert copy.deepcopy(word) == word
    assert len({word, same}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        word.extra = FrozenMap()  # type: ignore[misc]


@given(ANY_WORD, st.randoms(use_true_random=False))
def test_digest_does_not_see_the_order_of_keys(word: Document, seed: random.Random) -> None:
    assert type(word).from_plain(shuffled(word.to_plain(), seed)).digest == word.digest
    assert canonical_json(shuffled(word.to_plain(), seed)) == canonical_json(word)


@pytest.mark.parametrize("kind", list(WORDS))
def test_digest_does_not_see_fields_that_hold_their_default(kind: type[Document]) -> None:
    @given(WORDS[kind])
    def check(word: Document) -> None:
        spelled_out = word.to_plain()
        for field in dataclasses.fields(word):
            if field.name != "extra":
                spelled_out[field.metadata.get("key", field.name)] = plain_of(getattr(word, field.name))
        assert kind.from_plain(spelled_out).digest == word.digest

    check()


@pytest.mark.parametrize("kind", list(WORDS))
def test_digest_sees_every_field(kind: type[Document]) -> None:
    """Words that differ in one field have two digests: none is forgotten. Every field of every pair, so that a few pairs are enough."""

    @settings(max_examples=20)
    @given(WORDS[kind], WORDS[kind])
    def check(one: Document, other: Document) -> None:
        for field in dataclasses.fields(kind):
            changed = dataclasses.replace(one, **{field.name: getattr(other, field.name)})
            if changed != one:
                assert changed.digest != one.digest

    check()


@given(ANY_WORD, JSON)
def test_unknown_fields_are_kept_at_every_level(word: Document, value: Any) -> None:
    plain = word.to_plain()
    tables = [plain, *(row for rows in plain.values() if isinstance(rows, list) for row in rows if isinstance(row, dict))]
    for table in tables:
        table["of a later version"] = value
    again = type(word).from_plain(plain)
    assert again.to_plain() == plain
    assert json.loads(again.to_json()) == plain
    assert again.digest != word.digest


def test_unknown_fields_deep_inside() -> None:
    file = {"path": "m", "sha256": "0", "size_bytes": 1, "mode": [1, {"a": None}]}
    plain = {"format": "onnx", "inputs": [], "outputs": [], "files": [file],
             "recipe": {"step": [{"apply": "static", "why": {"x": [2.5]}}], "author": "me"}}
    assert Artifact.from_plain(plain).to_plain() == plain


@given(KINDS, JSON)
def test_arbitrary_json_is_read_or_refused(kind: type[Document], value: Any) -> None:
    read_or_refuse(kind, value)


@given(st.data())
def test_a_document_with_one_wrong_value_is_read_or_refused(data: st.DataObject) -> None:
    """Some value in a good document is replaced by arbitrary JSON: nothing but Refused may be raised."""
    word = data.draw(ANY_WORD)
    plain = word.to_plain()
    table: Any = plain
    for _ in range(data.draw(st.integers(0, 3))):
        inner = [item for item in (table.values() if isinstance(table, dict) else table) if isinstance(item, dict | list) and item]
        if not inner:
            break
        table = data.draw(st.sampled_from(inner))
    if not table:
        return
    place = data.draw(st.sampled_from(list(table) if isinstance(table, dict) else range(len(table))))
    table[place] = data.draw(st.one_of(JSON, st.just(10**400), st.just([[]]), st.just({"": {}})))
    read_or_refuse(type(word), plain)


def read_or_refuse(kind: type[Document], plain: Any) -> None:
    try:
        word = kind.from_plain(plain)
    except Refused:
        return
    assert kind.from_plain(word.to_plain()) == word
    assert len(word.digest) == 64


@given(ANY_WORD, st.integers(0, 2**16))
def test_truncated_json_is_refused(word: Document, cut: int) -> None:
    text = word.to_json()
    with pytest.raises(Refused):
        type(word).from_json(text[: cut % len(text)])


@pytest.mark.parametrize("text", [
    "", "{", "[]", "nul", '"text"', "NaN", '{"measurement": "x", "limit": NaN}', '{"measurement": "x", "limit": -Infinity}',
    '{"measurement": "x", "limit": 1e999}', '{"measurement": "x", "limit": 1, "later": [1e999]}', b"\xff\xfe\x00", b"\x80",
    '{"measurement": "x", "limit": ' + "1" * 5000 + "}", '{"measurement": "x", "limit": ' + "1" * 400 + "}",
    '{"measurement": "x", "limit": 1, "later": ' + "[" * 300 + "]" * 300 + "}", "[" * 100_000, '{"a":' * 100_000,
])
def test_hostile_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(Refused):
        Gate.from_json(text)


def test_a_refusal_does_not_repeat_a_huge_value() -> None:
    with pytest.raises(Refused) as caught:
        Gate.from_plain({"measurement": ["x" * 10_000_000], "limit": 1})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("plain", "message"), [
    ({"limit": 1}, "'measurement' is missing"),
    ({"measurement": 3, "limit": 1}, "Gate.measurement: 3 where a text"),
    ({"measurement": "x", "limit": "1"}, "Gate.limit: '1' where a number"),
    ({"measurement": "x", "limit": True}, "Gate.limit: True where a number"),
    ({"measurement": "x", "limit": 1, "proven": 1}, "Gate.proven: 1 where true or false"),
])
def test_refusals_name_the_field_what_was_found_and_what_was_expected(plain: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as caught:
        Gate.from_plain(plain)
    assert message in str(caught.value)


def test_refusals_name_the_place_inside() -> None:
    with pytest.raises(Refused, match=r"Step\.to\[1\]: 2 where a text"):
        Recipe.from_plain({"step": [{"apply": "static", "to": ["a", 2]}]})
    with pytest.raises(Refused, match=r"Layer\.parameters: True where a whole number"):
        Layer.from_plain({"name": "", "op": "", "parameters": True})
    with pytest.raises(Refused, match=r"Target\.limits\.size_bytes: 'big' where a number"):
        Target.from_plain({"name": "", "title": "", "runtime": "", "isa": "", "threads": 1, "limits": {"size_bytes": "big"}})
    with pytest.raises(Refused, match=r"Interval\.low"):  # an optional document says what is wrong inside it
        Measurement.from_plain({"name": "x", "value": 1, "interval": {"low": "a", "high": 1, "confidence": 0.95}})
    with pytest.raises(Refused, match="whole number or a text"):
        Artifact.from_plain({"format": "onnx", "inputs": [{"name": "x", "dtype": "float32", "shape": [1.5]}], "outputs": [], "files": []})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_neither_read_nor_written(number: float) -> None:
    with pytest.raises(Refused):
        Gate.from_plain({"measurement": "x", "limit": number})
    with pytest.raises(Refused):
        Recipe.from_plain({"step": [{"apply": "static", "with": {"percentile": number}}]})
    with pytest.raises(Refused):
        Gate("x", number).to_plain()
    with pytest.raises(Refused):
        digest({"a": [number]})


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", 1j])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(Refused, match="JSON cannot hold"):
        canonical_json([value])
    with pytest.raises(Refused, match="JSON cannot hold"):
        Recipe.from_plain({"step": [{"apply": "static", "with": {"x": value}}]})


def test_equal_numbers_have_one_spelling() -> None:
    assert Gate("x", 1) == Gate("x", 1.0)
    assert Gate("x", 1).digest == Gate("x", 1.0).digest == Gate.from_json(Gate("x", 1).to_json()).digest
    assert canonical_json([1.0, -0.0, 1e300, 0.1]) == canonical_json([1, 0, int(1e300), 0.1])
    assert canonical_json(True) != canonical_json(1)


def test_canonical_json_is_what_it_says() -> None:
    value = {"b": [1, 2.5, None, True], "a": "é\n", "ä": {}}
    assert canonical_json(value) == '{"a":"é\\n","b":[1,2.5,null,true],"ä":{}}'.encode()
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@given(JSON)
def test_canonical_json_is_json_and_stable(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    assert json.loads(text) == value


def test_the_digest_of_a_manifest_stays_what_it_was() -> None:
    """Ids are for ever: a change of spelling or of a default would give every stored artifact another one."""
    manifest = Artifact(
        "onnx", (), (), (ModelFile("model.onnx", "0" * 64, 17),), recipe=Recipe((Step("static", options={"ranges": "mse"}),))
    )
    assert canonical_json(manifest) == (
        b'{"files":[{"path":"model.onnx","sha256":"' + b"0" * 64 + b'","size_bytes":17}],"format":"onnx","inputs":[],"outputs":[],'
        b'"recipe":{"step":[{"apply":"static","with":{"ranges":"mse"}}]}}'
    )


def test_lone_surrogates_survive() -> None:
    gate = Gate("a\udcffb", 1)  # how Python spells a byte of a file name that is not UTF-8
    assert Gate.from_json(gate.to_json().encode()) == gate
    assert len(gate.digest) == 64


@given(st.dictionaries(st.text(), JSON))
def test_frozen_map_is_a_mapping_that_cannot_change(items: dict[str, Any]) -> None:
    frozen = FrozenMap(items)
    assert list(frozen) == list(items)
    assert len(frozen) == len(items)
    assert frozen == FrozenMap(dict(reversed(items.items())))
    assert hash(frozen) == hash(FrozenMap(dict(reversed(items.items()))))
    assert pickle.loads(pickle.dumps(frozen)) == frozen
    assert plain_of(frozen) == items
    assert freeze(frozen) is frozen
    with pytest.raises(AttributeError):
        frozen.x = 1
    with pytest.raises(TypeError):
        frozen["x"] = 1


def test_a_frozen_map_does_not_see_later_changes() -> None:
    rows = [1]
    items = {"a": rows}
    frozen = FrozenMap(items, b=2)
    rows.append(2)
    items["c"] = rows
    assert frozen == FrozenMap(a=(1,), b=2)


@pytest.mark.parametrize("path", [
    "", ".", "..", "/etc/passwd", "../x", "a/../../x", "a/..", "a//b", "a/./b", "a/", "a\0b",
    "C:\\x", "C:x", "\\\\server\\x", "\\x", "..\\x",
])
def test_file_paths_stay_inside_the_artifact(path: str) -> None:
    with pytest.raises(Refused, match="leaves the artifact's folder"):
        ModelFile(path, "0" * 64, 1)


@pytest.mark.parametrize("path", ["model.onnx", "model.onnx_data", "data/w.bin", "...", "a b", "naïve", "x:y/z"[2:], "d/serving_default:0"])
def test_good_file_paths(path: str) -> None:
    assert ModelFile(path, "0" * 64, 1).path == path


def test_totals() -> None:
    artifact = Artifact("onnx", (), (), (ModelFile("a", "", 2), ModelFile("b", "", 3)))
    assert artifact.size_bytes == 5
    assert artifact.artifact_id == artifact.digest


@pytest.mark.parametrize("text", ["[1e999]", "[-1e999]", "[NaN]", "Infinity"])
def test_parse_json_reads_no_number_that_is_none(text: str) -> None:
    with pytest.raises(Refused, match="not valid JSON"):
        parse_json(text, what="a test")


def test_parse_json_names_what_it_read() -> None:
    with pytest.raises(Refused, match=r"read the manifest: not valid JSON"):
        parse_json("{", what="the manifest")


def test_an_explicit_null_is_the_default_of_an_optional_field() -> None:
    plain = {"name": "x", "value": None, "interval": None}
    assert Measurement.from_plain(plain) == Measurement("x", None)
    assert Measurement("x", 1, interval=Interval(0, 1, 0.95)).to_plain()["interval"] == {"low": 0, "high": 1, "confidence": 0.95}
