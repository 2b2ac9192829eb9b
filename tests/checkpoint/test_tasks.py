"""What is made of the answers to tasks, without the package that makes the tasks: pairing, intervals, gates, tokens of a question."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.checkpoint.conftest import Models, Whet
from tests.checkpoint.made_up_models import saved_tokens, tokens
from tests.checkpoint.test_compare_checkpoints import noisy
from tests.checkpoint.test_text import with_words

import whet as api
from whet.compress.checkpoint import Checkpoint, harness, open_checkpoint, tasks
from whet.compress.checkpoint.harness import Marks, Suite, marked, pair
from whet.compress.checkpoint.speaker import Speaker
from whet.compress.checkpoint.tasks import TaskComparison
from whet.compress.compare import compare
from whet.compress.evaluate.intervals import mcnemar_p, tango_interval
from whet.core.errors import Refused, Unsupported

pytestmark = pytest.mark.usefixtures("one_torch_thread")
command = importlib.import_module("whet.cli.compare")


@pytest.fixture
def reader(models: Models, tmp_path: Path) -> Checkpoint:
    return with_words(models("llama"), tmp_path / "model", starts=True)


# -- questions as tokens ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "continuation", "wanted"), [
    ("w5 w6", " w7", ([1, 5, 6], [7])), ("w5 w6 ", "w7", ([1, 5, 6], [7])), ("", "w5 w6", ([1], [5, 6])), ("", "<s> w5", ([1], [5])),
    ("<s> w5", " w6", ([1, 5], [6])), ("w5", "", ([1, 5], [])), ("", "", ([1], [])),
    ("w5", "6 w7", ([1, 5], [7])),  # w56 is one token, and as many as the context has are taken off, as lm_eval does
    ("w5", "6", ([1, 5], [0])),  # nothing is left: then the continuation is read alone
])
def test_a_question_becomes_tokens(reader: Checkpoint, context: str, continuation: str, wanted: tuple[list[int], list[int]]) -> None:
    assert pair(Speaker(reader), context, continuation) == wanted


def test_a_space_between_the_two_belongs_to_the_continuation(assets: Path) -> None:
    said = Speaker(open_checkpoint(assets / "stories260K"))
    context, continuation = pair(said, "Once upon a ", "time")
    assert (context, continuation) == pair(said, "Once upon a", " time")
    assert said.tokenizer.decode(continuation).strip() == "time"
    assert context + continuation == said.encode("Once upon a time")


# -- a task, as lm_eval has them ----------------------------------------------------------------------------------------------------


class Task:
    """Documents that are asked of a model, and judged in two ways."""

    def __init__(self, kinds: Sequence[str], repeats: int = 1) -> None:
        self.instances = [SimpleNamespace(request_type=kind, args=(f"{at}", "x"), idx=idx, doc={"at": at}, doc_id=at, repeats=repeats,
                                          resps=[], filtered_resps={"old": "old"})
                          for at, kind in enumerate(kinds) for idx in (1, 0)]

    def apply_filters(self) -> None:
        for each in self.instances:
            each.filtered_resps |= {"none": each.resps[0], "more": each.resps[-1] + 1}

    def process_results(self, doc: dict[str, int], answers: list[float]) -> dict[str, float]:
        return {"first": answers[0], "sum": sum(answers)}

    def aggregation(self) -> dict[str, Any]:
        return {"sum": max}

    def higher_is_better(self) -> dict[str, bool]:
        return {"sum": False}


class Model:
    """Says where the question stands among those of its kind."""

    def loglikelihood(self, requests: list[Any]) -> list[float]:
        return [float(at) for at, _ in enumerate(requests)]

    def generate_until(self, requests: list[Any]) -> list[float]:
        return [100.0 + at for at, _ in enumerate(requests)]


@pytest.mark.parametrize("repeats", [1, 3])
def test_answers_go_to_their_requests_and_documents_are_judged_in_order(repeats: int) -> None:
    suite = Suite("x", (Task(["loglikelihood", "generate_until", "loglikelihood"], repeats),))
    for _ in range(2):  # the answers of a model before are gone
        found = {(each.metric, each.filter): each for each in marked(suite, Model())}
        assert all(len(each.resps) == repeats for each in suite.requests)
    assert {key: each.values for key, each in found.items()} == {
        ("first", ""): [1.0, 101.0, 3.0], ("sum", ""): [1.0, 201.0, 5.0], ("first", "more"): [2.0, 102.0, 4.0],
        ("sum", "more"): [3.0, 203.0, 7.0]}  # by idx: the request that was made second is the first of its document
    assert [(each.higher, each.aggregate) for each in found.values()] == [(True, None), (False, max)] * 2


def test_a_group_has_the_documents_of_all_of_its_tasks() -> None:
    suite = Suite("x", (Task(["loglikelihood"]), Task(["loglikelihood", "loglikelihood"])))
    assert [each.values for each in marked(suite, Model()) if each.metric == "first" and not each.filter] == [[1.0, 3.0, 5.0]]
    assert suite.content_hash != Suite("x", suite.tasks[:1]).content_hash


def test_a_task_that_fails_is_refused_by_name() -> None:
    broken = Task(["loglikelihood"])
    broken.process_results = lambda doc, answers: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(Refused, match="judge the answers to x: ZeroDivisionError"):
        marked(Suite("x", (broken,)), Model())


# -- scores ------------------------------------------------------------------------------------------------------------------------------


def scores(*pairs: tuple[Marks, Marks]) -> list[tasks.TaskScore]:
    return tasks._scores(Suite("x", ()), [[one for one, _ in pairs], [other for _, other in pairs]], 0.9, 0)


def marks(name: str, values: Sequence[Any], *, higher: bool = True, aggregate: Any = None) -> Marks:
    return Marks(name, "", higher, list(values), aggregate)


def test_right_or_wrong_is_paired_by_document() -> None:
    before, after = [1, 1, 1, 0, 0, 1, 0, 1], [1, 0, 0, 0, 1.0, 1, 0, True]
    (found,) = scores((marks("acc", before), marks("acc", after)))
    assert (found.lost, found.gained, found.n) == (2, 1, 8)
    assert (found.parent.value, found.candidate.value, found.drop.value) == (5 / 8, 4 / 8, 1 / 8)
    assert found.drop.interval == tango_interval(2, 1, 8, 0.9)
    assert found.mcnemar_p.value == mcnemar_p(2, 1)
    assert found.gated


@pytest.mark.parametrize("higher", [True, False])
def test_other_numbers_are_bootstrapped_and_positive_is_worse(higher: bool) -> None:
    (found,) = scores((marks("f1", [0.5, 0.25, 0.9, 0.4], higher=higher), marks("f1", [0.4, 0.2, 0.8, 0.4], higher=higher)))
    assert found.drop.value == pytest.approx(0.25 / 4 * (1 if higher else -1))
    assert found.drop.interval is not None
    assert found.drop.interval.low < found.drop.value < found.drop.interval.high
    assert (found.lost, found.mcnemar_p.value, found.gated) == (None, None, False)
    assert found.mcnemar_p.why == "f1 does not say right or wrong of each document"


def test_one_number_of_all_documents_is_bootstrapped_over_documents() -> None:
    def per_word(values: list[tuple[float, int]]) -> float:
        return sum(nats for nats, _ in values) / sum(words for _, words in values)

    before, after = [(3.0, 2), (9.0, 3), (4.0, 4)], [(4.0, 2), (9.0, 3), (5.0, 4)]
    (found,) = scores((marks("p", before, higher=False, aggregate=per_word), marks("p", after, higher=False, aggregate=per_word)))
    assert (found.parent.value, found.candidate.value) == pytest.approx((16 / 9, 18 / 9))
    assert found.drop.value == pytest.approx(2 / 9)
    assert found.drop.interval is not None
    assert 0 <= found.drop.interval.low <= 2 / 9 <= found.drop.interval.high <= 0.5  # both models are drawn alike
    assert "bootstrap of 200" in found.drop.method


def test_the_first_metric_of_right_and_wrong_is_gated() -> None:
    names = [("perplexity", [0.3, 0.7]), ("acc", [1, 0]), ("acc_norm", [1, 1])]
    found = scores(*((marks(name, values), marks(name, values)) for name, values in names))
    assert [each.metric for each in found if each.gated] == ["acc"]


@pytest.mark.parametrize("values", [["a", "b"], [(1, 2), (3, 4)], [None, 1.0], [float("nan"), 1.0]])
def test_what_is_no_number_is_refused_by_name(values: list[Any]) -> None:
    with pytest.raises(Refused, match="score a task by odd"):
        scores((marks("odd", values), marks("odd", values)))


# -- the question -------------------------------------------------------------------------------------------------------------------------


def test_without_the_package_it_says_how_to_get_it(reader: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Refused, match=r"is not installed\. pip install 'whet\[eval\]'"):
        api.compare(reader, reader, tasks="arc_easy")


@pytest.mark.parametrize(("names", "limit", "shots"), [([], None, None), (["a", ""], None, None), (["a"], 0, None), (["a"], None, -1)])
def test_questions_without_sense(names: list[str], limit: int | None, shots: int | None) -> None:
    with pytest.raises(Refused, match="name at least one task"):
        harness.suites_of(names, limit=limit, shots=shots)


def test_models_that_cannot_answer(models: Models, reader: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="predicts no next token"):
        compare(models("bert"), models("bert"), tasks="arc_easy")
    with pytest.raises(Refused, match="no tokenizer"):
        compare(reader, models("llama"), tasks="arc_easy")
    with pytest.raises(Refused, match="no folder of a language model"):
        compare("model.onnx", "model.onnx", tasks=["arc_easy"])
    with pytest.raises(Refused, match="compare with limit: no tasks"):
        compare(reader, reader, data=tokens(2), limit=3)
    with pytest.raises(Refused, match="leave the metric out"):
        compare(reader, reader, tasks="arc_easy", metric="accuracy")
    monkeypatch.setattr("whet.compress.checkpoint.speaker.describe", lambda: SimpleNamespace(memory_bytes=90_000))
    with pytest.raises(Refused, match=r"0\.0 GB of weights in float32, and 0\.0 GB of memory"):
        compare(reader, reader, tasks="arc_easy")


def made_up(monkeypatch: pytest.MonkeyPatch, after: Sequence[float]) -> None:
    """Two tasks whose answers are known, in the place of lm_eval's: of 100 documents ``after`` are right, all of them before."""
    suites = [Suite("easy", ()), Suite("hard", ())]
    answers = iter([[marks("acc", [at < right for at in range(100)])] for right in (100, 100, *after)])
    monkeypatch.setattr(tasks, "suites_of", lambda names, limit, shots: suites)
    monkeypatch.setattr(tasks, "marked", lambda suite, model: next(answers))
    monkeypatch.setattr(tasks, "language_model", lambda speaker: speaker)


@pytest.mark.parametrize(("after", "gate", "code", "words"), [
    ((100, 100), "5%", 0, ["passed: easy acc drop", "passed: hard acc drop"]),
    ((100, 90), "5%", 3, ["passed: easy acc drop", "refused: hard acc drop"]),
    ((100, 100), "1%", 3, ["100 samples do not prove it"]), ((100, 100), "kl<9", 0, ["passed: kl at most 9"]),
])
def test_a_number_gates_every_task_and_kl_the_text(whet: Whet, models: Models, reader: Checkpoint, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch, after: tuple[int, int], gate: str, code: int,
                                                   words: list[str]) -> None:
    made_up(monkeypatch, after)
    other = with_words(noisy(models("llama"), tmp_path / "x"), tmp_path / "y", starts=True)
    text = ("--data", saved_tokens(tmp_path)) if gate.startswith("kl") else ()
    done = whet("compare", reader.folder, other.folder, "--tasks", "easy,hard", *text, "--max-drop", gate)
    assert done.exit_code == code, done.output
    assert all(word in done.stdout for word in words), done.stdout
    assert ("Perplexity" in done.stdout) == bool(text)
    assert "0 / 0" in done.stdout


def test_what_is_shown(whet: Whet, reader: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, (97, 100))
    lines = whet("compare", reader.folder, reader.folder, "--tasks", "easy,hard").stdout.splitlines()
    assert lines[0].split() == ["task", "documents", "original", "candidate", "drop", "90%", "interval", "lost", "/", "gained"]
    assert lines[1].split()[:6] == ["easy:", "acc", "100", "1.0000", "0.9700", "+0.0300"]
    assert lines[1].split()[-3:] == ["3", "/", "0"]


@pytest.mark.parametrize(("line", "word"), [
    ("--limit 3", "--limit needs --tasks"), ("--shots 3 --data x.txt", "--shots needs --tasks"),
    ("--max-drop 1%", "--max-drop needs --data or"), ("--tasks a --max-drop kl<1", "--max-drop kl<1 needs --data"),
    ("--tasks a --limit 0", "--limit"), ("--tasks a --metric acc", "--metric needs"), ("--tasks a --max-drop 5", "write 5% for 0.05"),
])
def test_flags_that_need_others(whet: Whet, line: str, word: str) -> None:
    done = whet("compare", "a", "b", *line.split())
    assert done.exit_code == 2
    assert word in " ".join(done.stderr.split())


def test_scores_are_documents(models: Models, reader: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, (97, 100))
    found = compare(reader, open_checkpoint(reader.folder), tasks=("easy", "hard"))
    assert isinstance(found, TaskComparison)
    assert TaskComparison.from_json(found.to_json()) == found
    assert found.text is None
