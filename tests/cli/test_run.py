"""``whet run``: the text as it comes, then one line on how fast it came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Whet

from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.onnx_export import export_onnx

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def stories(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = assets / "stories260K"
    if not source.is_dir():
        pytest.skip("no stories260K")
    folder = tmp_path_factory.mktemp("stories") / "onnx"
    export_onnx(open_checkpoint(source), folder)
    return folder


def test_the_text_and_then_how_fast(whet: Whet, stories: Path) -> None:
    done = whet("run", stories, "--prompt", PROMPT, "--max-tokens", "40", "--threads", "1")
    assert done.exit_code == 0, done.output
    *text, told = done.stdout.splitlines()
    assert "\n".join(text).startswith(f"{PROMPT}, there was a little girl named Lily")
    assert told.startswith("5 tokens of prompt at ")
    assert "; 40 tokens of text at " in told
    assert "peak memory " in told
    assert told.endswith("; --max-tokens reached")
    assert done.stderr == ""


def test_quiet_is_the_text_alone(whet: Whet, stories: Path) -> None:
    done = whet("run", stories, "--prompt", PROMPT, "--max-tokens", "4", "-q")
    assert done.stdout.startswith(f"{PROMPT}, there was a")
    assert "tokens" not in done.stdout


def test_json_holds_the_text_and_the_numbers(whet: Whet, stories: Path) -> None:
    words = ("run", stories, "--prompt", PROMPT, "--max-tokens", "20", "--temperature", "1", "--top-k", "20", "--top-p", "0.9", "--json")
    found, again, other = (json.loads(whet(*words, "--seed", seed).stdout) for seed in ("1", "1", "2"))
    assert (found["prompt"], found["prompt_tokens"], found["tokens"], found["ended"]) == (PROMPT, 5, 20, "length")
    assert found["decode_tokens_per_s"] > 0
    assert found["text"] == again["text"] != other["text"]


def test_what_a_terminal_would_obey_is_not_written(whet: Whet, stories: Path) -> None:
    shown = whet("run", stories, "--prompt", "a\x1b[31m\u202eb\nc", "--max-tokens", "1", "-q").stdout
    assert shown.startswith("a\ufffd[31m\ufffdb\nc")


@pytest.mark.parametrize("words", [("--max-tokens", "0"), ("--temperature", "-1"), ("--top-p", "0"), ("--threads", "0")])
def test_wrong_usage(whet: Whet, stories: Path, words: tuple[str, str]) -> None:
    assert whet("run", stories, "--prompt", PROMPT, *words).exit_code == 2


def test_what_cannot_be_run_is_said_in_a_sentence(whet: Whet, tmp_path: Path) -> None:
    done = whet("run", tmp_path, "--prompt", PROMPT)
    assert done.exit_code == 2
    assert "no genai_config.json in it" in done.stderr
    assert "Traceback" not in done.stderr
