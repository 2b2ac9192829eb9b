"""Tasks of lm_eval, really run, on local documents: the same numbers as the package's own way through transformers gives."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.checkpoint.conftest import Whet
from tests.checkpoint.made_up_models import of_transformers
from tests.checkpoint.made_up_tasks import FORMS, made_up_tasks

from whet.compress.apply import apply
from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.harness import Suite, language_model, marked, suites_of
from whet.compress.checkpoint.speaker import Speaker
from whet.compress.checkpoint.tasks import TaskComparison, compare_by_tasks
from whet.compress.compare import compare
from whet.core.errors import Refused, Unsupported

lm_eval = pytest.importorskip("lm_eval", reason="pip install 'whet[eval]'")
pytestmark = [pytest.mark.usefixtures("one_torch_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def stories(assets: Path) -> Checkpoint:
    return open_checkpoint(assets / "stories260K")


@pytest.fixture(scope="module")
def rounded(stories: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    made = apply(stories, "rtn", options={"bits": 2, "block": 32}, out=tmp_path_factory.mktemp("rounded") / "out")
    assert isinstance(made, Checkpoint)
    return made


@pytest.fixture(scope="module")
def folder(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = (assets / "stories260K" / "tinystories_val.txt").read_text()[:60000]
    return made_up_tasks(tmp_path_factory.mktemp("tasks") / "tasks", text)


@pytest.fixture(scope="module")
def compared(stories: Checkpoint, rounded: Checkpoint, folder: Path) -> TaskComparison:
    return compare_by_tasks(stories, rounded, [str(folder / f"{name}.yaml") for name in FORMS])


def requests(suite: Suite, kind: str) -> list[Any]:
    return [SimpleNamespace(args=each.args, task_name=suite.name) for each in suite.requests if each.request_type == kind]


KINDS = {"endings": "loglikelihood", "last_words": "loglikelihood", "pages": "loglikelihood_rolling", "written": "generate_until"}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_answers_are_those_of_the_packages_own_model(stories: Checkpoint, folder: Path, name: str, kind: str) -> None:
    pytest.importorskip("accelerate", reason="lm_eval's own model needs it")
    from lm_eval.models.huggingface import HFLM

    (suite,) = suites_of([str(folder / f"{name}.yaml")], limit=12)
    said = Speaker(stories)
    own = HFLM(pretrained=of_transformers(stories.folder), tokenizer=said.tokenizer, batch_size=1, device="cpu")
    found, wanted = (getattr(model, kind)(requests(suite, kind)) for model in (language_model(said), own))
    assert len(found) == len(wanted) >= 12
    if kind == "generate_until":
        assert found == wanted
        return
    pairs = list(zip(found, wanted, strict=True))
    if kind == "loglikelihood":
        assert [one[1] for one, _ in pairs] == [other[1] for _, other in pairs]
        pairs = [(one[0], other[0]) for one, other in pairs]
    assert [one for one, _ in pairs] == pytest.approx([other for _, other in pairs], rel=1e-5, abs=1e-3)


def test_scores_are_those_of_the_packages_own_loop(stories: Checkpoint, rounded: Checkpoint, folder: Path,
                                                   compared: TaskComparison) -> None:
    from lm_eval.tasks import TaskManager

    for checkpoint, side in ((stories, "parent"), (rounded, "candidate")):
        loaded = TaskManager(include_defaults=False).load([str(folder / f"{name}.yaml") for name in FORMS])
        results = lm_eval.evaluate(language_model(Speaker(checkpoint)), loaded, bootstrap_iters=0)["results"]
        for each in compared.scores:
            metric, _, rest = each.metric.partition(" (")
            wanted = results[each.task][f"{metric},{rest.rstrip(')') or 'none'}"]
            assert getattr(each, side).value == pytest.approx(wanted, rel=1e-4), (side, each.task, each.metric)


def test_every_kind_of_metric_has_its_interval(compared: TaskComparison) -> None:
    kinds = {(each.task, each.metric): each for each in compared.scores}
    assert set(kinds) == {("endings", "acc"), ("endings", "acc_norm"), ("last_words", "perplexity"), ("last_words", "acc"),
                          ("pages", "word_perplexity"), ("pages", "byte_perplexity"), ("written", "exact_match (all)"),
                          ("written", "exact_match (word)")}
    assert all(each.n == 40 and each.drop.interval is not None for each in compared.scores)
    assert [key for key, each in kinds.items() if each.gated] == [("endings", "acc"), ("last_words", "acc"),
                                                                  ("written", "exact_match (all)")]
    endings, pages = kinds["endings", "acc"], kinds["pages", "word_perplexity"]
    assert "Tango" in endings.drop.method
    assert endings.drop.value == pytest.approx(((endings.lost or 0) - (endings.gained or 0)) / 40)
    assert (endings.parent.value or 0) > 0.4  # four choices
    assert "bootstrap" in pages.drop.method
    assert (pages.drop.value or 0) > 0.1  # more perplexity is worse
    assert pages.drop.value == pytest.approx((pages.candidate.value or 0) - (pages.parent.value or 0))
    assert list(compared.drops) == ["endings acc drop", "last_words acc drop", "written exact_match (all) drop", "pages drop"]
    assert compared.drops["pages drop"].value is None
    assert TaskComparison.from_json(compared.to_json()) == compared


def test_a_folder_is_all_of_its_tasks_and_a_group_is_scored_as_one(stories: Checkpoint, folder: Path) -> None:
    assert {suite.name for suite in suites_of([str(folder)], limit=2)} == set(FORMS)
    (group,) = suites_of([str(folder / "both.yaml")], limit=2)
    assert group.name == "both"
    assert [each.task_name for each in group.tasks] == ["endings", "last_words"]
    marks = {each.metric: each for each in marked(group, language_model(Speaker(stories)))}
    assert {name: len(each.values) for name, each in marks.items()} == {"acc": 4, "acc_norm": 2, "perplexity": 2}


def test_limit_and_shots(stories: Checkpoint, folder: Path) -> None:
    (few,) = suites_of([str(folder / "endings.yaml")], limit=3)
    (more,) = suites_of([str(folder / "endings.yaml")], limit=5)
    assert len(few.requests) == 12
    assert [each.args for each in more.requests[:12]] == [each.args for each in few.requests]
    assert few.content_hash != more.content_hash
    shots = [suites_of([str(folder / "endings.yaml")], limit=3, shots=2)[0] for _ in range(2)]
    assert shots[0].content_hash == shots[1].content_hash != few.content_hash
    assert all(each.args[0].count("\n\n") == 2 for each in shots[0].requests)


def test_the_python_api(stories: Checkpoint, rounded: Checkpoint, folder: Path, assets: Path) -> None:
    text = (assets / "stories260K" / "tinystories_val.txt").read_text()[:6000]
    found = compare(stories.folder, rounded.folder, data=[text], tasks=f"{folder / 'endings.yaml'}", limit=4)
    assert isinstance(found, TaskComparison)
    assert [each.n for each in found.scores] == [4, 4]
    assert found.text is not None
    assert (found.text.drop.value or 0) > 0
    assert (found.parent_size, found.candidate_size) == (found.text.parent_size, found.text.candidate_size)


@pytest.mark.parametrize(("change", "word", "kind"), [
    ({"generation_kwargs": "{do_sample: true, temperature: 0.8}"}, "temperature 0.8", Unsupported),
    ({"doc_to_target": '"{{nothing[0].x}}"'}, "UndefinedError", Refused), ({"test_split": "none"}, "none", Refused),
])
def test_tasks_that_cannot_be_asked(stories: Checkpoint, folder: Path, tmp_path: Path, change: dict[str, str], word: str,
                                    kind: type[Exception]) -> None:
    lines = [line for line in (folder / "written.yaml").read_text().splitlines() if line.split(":")[0] not in change]
    (tmp_path / "x.yaml").write_text("\n".join([*lines, *(f"{name}: {value}" for name, value in change.items())]) + "\n")
    with pytest.raises(kind, match=word):
        compare_by_tasks(stories, stories, [str(tmp_path / "x.yaml")], limit=2)


def test_the_command(whet: Whet, stories: Checkpoint, rounded: Checkpoint, folder: Path) -> None:
    line = ("compare", stories.folder, rounded.folder, "--tasks", f"{folder}/endings.yaml,{folder}/pages.yaml", "--limit", 8)
    done = whet(*line)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert "endings: acc_norm" in done.stdout
    assert "smaller" in done.stdout
    gated = whet(*line, "--max-drop", "1%")
    assert gated.exit_code == 3
    assert "refused: endings acc drop at most 0.01" in gated.stdout
    assert "refused: pages drop at most 0.01 (asked with --max-drop): no number, none of its metrics says right or wrong" in gated.stdout
    as_json = whet(*line, "--max-drop", "99%", "--json")
    assert as_json.exit_code == 3
    found = json.loads(as_json.stdout)
    assert [each["passed"] for each in found["verdict"]["reasons"]] == [True, False]
    assert TaskComparison.from_plain({name: value for name, value in found.items() if name != "verdict"}).scores[0].task == "endings"


@pytest.mark.parametrize(("names", "word"), [("nothing.yaml", "no such file"), ("EMPTY", "no YAML file of a task in it"),
                                             ("BROKEN", "ParserError")])
def test_what_is_no_task(whet: Whet, stories: Checkpoint, tmp_path: Path, names: str, word: str) -> None:
    import re

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("what: [is this\n")
    names = names.replace("EMPTY", str(tmp_path / "empty")).replace("BROKEN", str(tmp_path / "broken.yaml"))
    done = whet("compare", stories.folder, stories.folder, "--tasks", names)
    assert done.exit_code == 2, done.output
    assert re.search(word, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_name_that_is_nearly_one(stories: Checkpoint) -> None:
    with pytest.raises(Refused, match="near it are arc_easy"):
        suites_of(["arc_esay"])


def test_what_the_package_says_of_itself_is_not_heard(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    suites_of([str(folder / "endings.yaml")], limit=2)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level <= logging.CRITICAL
    assert torch.get_num_threads() == 1
