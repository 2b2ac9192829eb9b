"""The documentation is true: pages exist, links lead somewhere, and commands that a reader may type are commands that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
TECHNIQUES = sorted(file.stem for file in (ROOT / "src/whet/compress/techniques").glob("[!_]*.py"))
PAGES = sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
FENCE = re.compile(r"^ *```([\w-]*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# -- pages --------------------------------------------------------------------------------------------------------------------


def test_there_are_pages_and_techniques() -> None:
    assert "CONTRIBUTING.md" in PAGES
    assert "static" in TECHNIQUES


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_has_its_page_with_every_option(name: str) -> None:
    technique = pytest.importorskip("whet.compress.technique").technique(name)
    page = ROOT / "docs/techniques" / f"{name}.md"
    assert page.is_file(), f"write docs/techniques/{name}.md"
    text = page.read_text(encoding="utf-8")
    assert [option.name for option in technique.options if f"`{option.name}`" not in text] == []


def test_every_page_of_a_technique_has_its_technique() -> None:
    pages = {page.stem for page in (ROOT / "docs/techniques").glob("*.md")} - {"README", "index"}
    assert pages <= set(TECHNIQUES)


# -- links --------------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#{1,6} +(.*?)\s*#*$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(text: str, folder: Path) -> Iterator[str]:
    """Every relative link of a page in ``folder`` that leads nowhere."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    for link in re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)|^\[[^\]]+\]: *(\S+)", prose, re.MULTILINE):
        path, _, anchor = "".join(link).partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (folder / path).resolve()
        if path and not target.exists():
            yield f"{path} does not exist"
        elif anchor and (not path or target.suffix == ".md"):
            there = anchors(target.read_text(encoding="utf-8") if path else text)
            if anchor not in there:
                yield f"{path}#{anchor} is no heading there"


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    assert list(dead_links(read(page), (ROOT / page).parent)) == []


def test_dead_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A `good` heading, here\n")
    good = "[a](there.md) [b](there.md#a-good-heading-here) [c](https://x.y/z) ![d](there.md) [e](#up) `[f](gone.md)`\n# Up\n"
    assert list(dead_links(good + "```\n[g](gone.md)\n```\n", tmp_path)) == []
    bad = "[a](gone.md) [b](there.md#gone) [c](#gone) ![d](gone.png)\n[e]: gone.txt\n"
    assert len(list(dead_links(bad, tmp_path))) == 5


# -- make ---------------------------------------------------------------------------------------------------------------------


def verbs() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


def wrong_verbs(text: str, there: set[str]) -> list[str]:
    """The `make` verbs that code in the text names and the Makefile lacks."""
    code = [*re.findall(r"`([^`\n]+)`", FENCE.sub("", text)), *(line for _, block in FENCE.findall(text) for line in block.splitlines())]
    named = [re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*make ([a-z][a-z-]*(?: [a-z][a-z-]*)*)", line.strip()) for line in code]
    return [verb for found in named if found for verb in found[1].split() if verb not in there]


@pytest.mark.parametrize("page", PAGES)
def test_every_make_verb_exists(page: str) -> None:
    assert wrong_verbs(read(page), verbs()) == []


def test_the_makefile_has_the_verbs_that_are_promised() -> None:
    assert {"demo", "test", "check", "bench", "clean", "help"} <= verbs()
    phony = re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == verbs()


def test_wrong_verbs_are_noticed() -> None:
    text = "`make demo` and `make dmeo`\n```\nmake test  # all\n$ make tests\nPYTHON=x make chekc\nmake sure\n```\n"
    assert wrong_verbs(text, verbs()) == ["dmeo", "tests", "chekc", "sure"]


# -- commands -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whet_command() -> click.Group:
    if not list((ROOT / "src/whet").glob("cli*")):
        pytest.skip("there is no command line yet")
    from whet.cli import main

    assert isinstance(main, click.Group)
    return main


def commands_of(group: click.Group, prefix: str = "whet") -> Iterator[str]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if command is not None and not command.hidden:
            yield f"{prefix} {name}"
            if isinstance(command, click.Group):
                yield from commands_of(command, f"{prefix} {name}")


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every line in the text's code blocks that begins with ``whet``, up to a pipe or the like."""
    for language, block in FENCE.findall(text):
        if language in ("python", "toml", "json"):
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if not line.startswith("whet "):
                continue
            words = shlex.split(line, comments=True)
            end = next((i for i, word in enumerate(words) if word in ("|", "&&", ";", ">", "||")), len(words))
            yield words[:end]


def wrong_words(words: list[str], group: click.Group) -> Iterator[str]:
    """Every subcommand and flag of a command line that does not exist."""
    command: click.Command = group
    for position, word in enumerate(words[1:]):
        if word.startswith("-") and word != "-" and not re.fullmatch(r"-[\d.]+", word):
            context = click.Context(command, **group.context_settings)  # whose names of --help a command keeps
            flags = {flag for option in command.get_params(context) for flag in [*option.opts, *option.secondary_opts]}
            if word.split("=")[0] not in flags:
                yield f"{' '.join(words[: position + 1])}: no flag {word}"
        elif isinstance(command, click.Group):
            inner = command.get_command(click.Context(command), word)
            if inner is None:
                yield f"{' '.join(words[: position + 1])}: no command {word}"
                return
            command = inner


def wrong_techniques(words: list[str]) -> Iterator[str]:
    """What stands where ``whet apply`` wants a technique and is none."""
    known = (*TECHNIQUES, "TECHNIQUE", "--help")
    if words[:2] == ["whet", "apply"] and len(words) > 2 and "--recipe" not in words and words[2] not in known:
        yield f"whet apply: no technique {words[2]}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_can_be_typed(page: str, whet_command: click.Group) -> None:
    lines = list(command_lines(read(page)))
    assert [fault for words in lines for fault in (*wrong_words(words, whet_command), *wrong_techniques(words))] == []


def test_every_command_has_its_section(whet_command: click.Group) -> None:
    page = ROOT / "docs/cli.md"
    assert page.is_file(), "write docs/cli.md"
    sections = re.findall(r"^## (whet .+?)\s*$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    assert sorted(sections) == sorted(commands_of(whet_command))


def test_every_flag_is_in_its_section(whet_command: click.Group) -> None:
    page = ROOT / "docs/cli.md"
    parts = re.split(r"^## (whet .+?)\s*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name, section in zip(parts[1::2], parts[2::2], strict=True):
        command: click.Command | None = whet_command
        for word in name.split()[1:]:
            command = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
        flags = [max(option.opts, key=len) for option in command.params if isinstance(option, click.Option)] if command else []
        assert [flag for flag in flags if flag not in section] == [], name


def test_wrong_commands_are_noticed() -> None:
    @click.group()
    @click.option("--quiet", "-q", is_flag=True)
    def group() -> None: ...

    @group.command()
    @click.argument("model")
    @click.option("--target", "-t")
    @click.option("--cache/--no-cache")
    def plan(model: str, target: str, cache: bool) -> None: ...

    def faults(block: str) -> list[str]:
        return [fault for words in command_lines(f"```\n{block}\n```\n") for fault in wrong_words(words, group)]

    assert list(commands_of(group)) == ["whet plan"]
    assert faults("whet -q plan m.onnx --target=pi5 -t x \\\n    --no-cache --help  # --nothing\nwhat --is this") == []
    assert faults("$ whet plan m | less --raw") == []
    assert faults("whet plna m.onnx --x") == ["whet: no command plna"]
    assert faults("whet plan m.onnx \\\n  --tarjet pi5") == ["whet plan m.onnx: no flag --tarjet"]
    assert faults("$ whet --loud plan m.onnx") == ["whet: no flag --loud"]
    lines = command_lines("```\nwhet apply recipe.toml m.onnx\nwhet apply --recipe recipe.toml m.onnx\nwhet apply static m.onnx\n```\n")
    assert [fault for words in lines for fault in wrong_techniques(words)] == ["whet apply: no technique recipe.toml"]


# -- Python -------------------------------------------------------------------------------------------------------------------


def wrong_names(text: str, there: set[str]) -> list[str]:
    """Every ``whet.name`` in the text's Python that the API lacks."""
    blocks = [block for language, block in FENCE.findall(text) if language == "python"]
    named = [name for block in blocks for name in re.findall(r"(?<![\w./])whet\.(\w+)", block)]
    return [name for name in named if name not in there]


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_the_api_exists(page: str) -> None:
    whet = pytest.importorskip("whet")
    assert wrong_names(read(page), {*dir(whet), "core", "device", "compress", "hub"}) == []


def test_wrong_names_are_noticed() -> None:
    text = '```python\nimport whet\nwhet.load("x/whet.json")\nwhet.laod(1)\nfrom whet.core import gate\n```\n'
    assert wrong_names(text, {"load", "core"}) == ["laod"]
