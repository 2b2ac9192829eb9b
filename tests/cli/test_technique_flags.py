"""A technique's options are flags, told from its own file."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from tests.cli.conftest import Task, Whet

from whet.compress.technique import technique, technique_names
from whet.core.artifact import Artifact


@pytest.mark.parametrize("name", technique_names())
def test_the_help_of_a_technique_shows_all_that_its_file_says(whet: Whet, name: str) -> None:
    found, shown = technique(name), whet("apply", name, "--help").output
    words = "".join(shown.split())  # lines are broken at hyphens too
    for part in (found.sentence, found.paper, found.cost, found.limits, *(option.search.help for option in found.options)):
        assert "".join(part.split()) in words
    for option in found.options:
        assert f"--{option.name.replace('_', '-')}" in shown
        word = option.name.replace("_", "-")
        default = (word if option.default else f"no-{word}") if option.kind is bool else str(option.default)
        assert f"[default:{default}]" in words
        if option.search.only and option.kind is not bool:
            assert f"[{'|'.join(map(str, option.search.values))}]" in shown


@pytest.mark.parametrize("command", ["apply", "plan"])
def test_no_option_of_a_technique_hides_a_flag_of_the_command(command: str) -> None:
    from whet.cli import main

    found = main.get_command(click.Context(main), command)
    assert found is not None
    own = {flag for parameter in found.params for flag in parameter.opts}
    for name in technique_names():
        assert not own & {f"--{option.name.replace('_', '-')}" for option in technique(name).options}


def test_only_what_was_typed_is_written_into_the_recipe(whet: Whet, task: Task, tmp_path: Path) -> None:
    done = whet("apply", "weight_only", task.model, "--bits", 4, "--block=32", "--no-symmetric", "--except", "op:Conv",
                "-o", tmp_path / "out", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    artifact = Artifact.from_plain({name: value for name, value in json.loads(done.stdout).items() if name not in ("out", "id")})
    assert artifact.recipe is not None
    step = artifact.recipe.steps[0]
    assert (step.technique, dict(step.options), step.exclude) == ("weight_only", {"bits": 4, "block": 32, "symmetric": False}, ("op:Conv",))
    assert json.loads(done.stdout)["id"] == artifact.artifact_id


@pytest.mark.parametrize(("words", "said"), [
    (["apply", "static", "MODEL", "--bitts", "4", "-o", "OUT"], "static has no option --bitts; its options are: --ranges [minmax|"),
    (["apply", "dynamic", "MODEL", "--bits", "4", "-o", "OUT"], "dynamic has no option --bits"),
    (["apply", "weight_only", "MODEL", "--bits", "9", "-o", "OUT"], "'9' is not one of 8, 7, 6, 5, 4, 3, 2, 16"),
    (["apply", "weight_only", "MODEL", "--bits", "x", "-o", "OUT"], "'x' is no int"),
    (["apply", "sttic", "MODEL", "--bits", "4", "-o", "OUT"], "no technique 'sttic'; the techniques are"),
    (["apply", "MODEL", "-o", "OUT"], "give TECHNIQUE MODEL"),
    (["apply", "-o", "OUT"], "TECHNIQUE and MODEL are missing"),
    (["apply", "--recipe", "r.toml", "static", "MODEL", "-o", "OUT"], "with --recipe give MODEL and nothing else"),
    (["apply", "--recipe", "r.toml", "--to", "x", "MODEL", "-o", "OUT"], "--to and --except go with a technique"),
    (["plan", "MODEL", "--technique", "sttic"], "no technique 'sttic'"),
    (["plan", "MODEL", "--technique=dynamic", "--bits", "4"], "dynamic has no option --bits; its options are"),
    (["plan", "MODEL"], "give either --technique or --recipe"),
])  # fmt: skip
def test_wrong_words_are_refused_with_what_there_is(whet: Whet, task: Task, tmp_path: Path, words: list[str], said: str) -> None:
    done = whet(*({"MODEL": task.model, "OUT": tmp_path / "out"}.get(word, word) for word in words))
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_have_the_name_of_a_technique(whet: Whet, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert whet("apply", "-o", "static", "weight_only", task.model, "--bits", "4").exit_code == 0
    assert (tmp_path / "static" / "whet.json").is_file()


def test_completion_knows_techniques_targets_and_values(whet: Whet) -> None:
    from click.shell_completion import ShellComplete

    from whet.cli import main

    complete = ShellComplete(main, {}, "whet", "_WHET_COMPLETE")

    def offered(args: list[str], incomplete: str) -> list[str]:
        return [item.value for item in complete.get_completions(args, incomplete)]

    assert "static" in offered(["apply"], "st")
    assert offered(["apply", "static", "m.onnx", "--ranges"], "m") == ["minmax", "moving_average", "mse"]
    assert offered(["plan", "m.onnx", "--technique"], "flo") == ["float16"]
    assert offered(["optimize", "--target"], "pi") == ["pi5"]
    assert offered(["optimize", "--metric"], "ac") == ["accuracy"]
