"""Tasks of EleutherAI's lm-evaluation-harness (``lm_eval`` 0.4.13), asked of a model that Whet runs.

The package makes the questions and judges the answers; ``Speaker`` answers. The requests of a task are made once, so that two models are
asked the very same. It is imported where it is needed: nothing else of Whet wants it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.compress.checkpoint.speaker import Speaker
from whet.compress.checkpoint.text import LONGEST_WINDOW
from whet.compress.source.quiet import quiet
from whet.core.document import digest
from whet.core.errors import Refused, Unreachable, Unsupported, WhetError
from whet.core.progress import task

SHOTS_SEED = 1234  # lm_eval's own: which examples stand before a question
MOST_TOKENS = 256  # that are written where a task does not say


@dataclass(frozen=True, eq=False)
class Suite:
    """What is scored as one: a task, or a group with all of its tasks. tasks: lm_eval's objects, with their requests made."""

    name: str
    tasks: tuple[Any, ...]

    @property
    def requests(self) -> list[Any]:
        return [request for each in self.tasks for request in each.instances]

    @property
    def content_hash(self) -> str:
        """sha256 of all that the model is asked."""
        return digest([[request.request_type, list(request.args)] for request in self.requests])


@dataclass(frozen=True, eq=False)
class Marks:
    """What one metric says of the answers. values: of each document, in order. aggregate: what makes one number of them; None for the mean.

    filter: of a task that reads answers in several ways, which one; "" where there is one.
    """

    metric: str
    filter: str
    higher: bool
    values: list[Any]
    aggregate: Callable[[list[Any]], float] | None = None


def suites_of(names: Sequence[str], *, limit: int | None = None, shots: int | None = None) -> list[Suite]:
    """The tasks of those names, which may be lm_eval's, YAML files, or folders of them. limit: so many documents of each. shots: examples
    before each question, where the task allows it.

    Raises Refused where lm_eval is not installed or knows no such task, Unreachable where its documents cannot be fetched.
    """
    asked = f"score {', '.join(names)}"
    if not names or not all(names) or (limit is not None and limit < 1) or (shots is not None and shots < 0):
        raise Refused("score a model by tasks", found=f"tasks {list(names)}, limit {limit}, shots {shots}",
                      do="name at least one task, a limit of 1 or more, and 0 shots or more")
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise Refused(asked, found=f"the package {error.name!r} is not installed", do="pip install 'whet[eval]'") from error
    try:
        with task("reading the tasks"), quiet():
            return _suites(TaskManager, names, limit, shots)
    except WhetError:
        raise
    except ConnectionError as error:
        raise Unreachable(asked, found=_said(error), do="try again with a network, or give a YAML task of local files") from error
    except Exception as error:  # a task is YAML, templates and code of anybody's
        raise Refused(asked, found=_said(error), do="mend the task, or choose another one") from error


def _suites(manager_of: Callable[..., Any], names: Sequence[str], limit: int | None, shots: int | None) -> list[Suite]:
    folders = [Path(name) for name in names if Path(name).is_dir()]
    own = {folder: manager_of(include_path=folder, include_defaults=False).all_subtasks for folder in folders}
    empty = [str(folder) for folder, tasks in own.items() if not tasks]
    if empty:
        raise Refused(f"score {empty[0]}", found="no YAML file of a task in it", do="give a folder of tasks as lm_eval reads them")
    plain = [name for name in names if not Path(name).exists()]
    lost = [name for name in plain if Path(name).suffix in (".yaml", ".yml") or Path(name).name != name]
    if lost:  # told before lm_eval looks at thousands of files of its own
        raise Refused(f"score {lost[0]}", found="there is no such file")
    groups_at = {name: group for name in names if (group := _group_in(Path(name)))}
    around = [Path(name).parent for name in groups_at]
    known = manager_of(include_path=[*folders, *around] or None, include_defaults=bool(plain))
    for name in plain:
        _check_known(name, known.all_tasks)
    wanted = [each for name in names for each in own.get(Path(name), [groups_at.get(name, name)])]
    loaded = known.load(wanted)
    groups = {name: tuple(group.get_all_tasks()) for name, group in loaded.get("groups", {}).items() if name in wanted}
    grouped = {id(each) for tasks in groups.values() for each in tasks}
    found = [Suite(name, tasks) for name, tasks in groups.items()]
    found += [Suite(name, (each,)) for name, each in loaded["tasks"].items() if id(each) not in grouped]
    for suite in found:
        for each in suite.tasks:
            _prepare(each, suite.name, limit, shots)
    return found


def _group_in(path: Path) -> str:
    """The name of the group in a YAML file, "" where it is none. It names tasks that lie beside it; lm_eval reads those by name alone."""
    found = re.search(r"^group:\s*(\S+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE) if path.is_file() else None
    return found[1].strip("'\"") if found else ""


def _check_known(name: str, known: Iterable[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 3)
    raise Refused(f"score {name}", found="lm_eval has no task of that name, and there is no such file",
                  do=f"near it are {', '.join(near)}" if near else "look at what `lm-eval ls tasks` lists, or give a YAML file")


def _prepare(made: Any, name: str, limit: int | None, shots: int | None) -> None:
    """Make the task's requests, as lm_eval's own ``simple_evaluate`` does."""
    if getattr(made, "UNSAFE_CODE", False) or getattr(made, "MULTIMODAL", False):
        found = "a task that runs what the model wrote" if getattr(made, "UNSAFE_CODE", False) else "a task of pictures or sound"
        raise Unsupported(f"score {name}", found=found, do="choose another task")
    said = made.get_config("num_fewshot")
    if (said is None or shots is not None) and said != 0:
        made.set_config(key="num_fewshot", value=shots or 0)
    made.set_fewshot_seed(seed=SHOTS_SEED)
    made.build_all_requests(limit=limit, rank=0, world_size=1)


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def marked(suite: Suite, model: Any) -> list[Marks]:
    """The answers of a model (``language_model``) to the requests of a suite, judged by its metrics."""
    kinds: dict[str, list[Any]] = {}
    for request in suite.requests:
        request.filtered_resps = {}  # of the model before
        kinds.setdefault(request.request_type, []).append(request)
    for kind, requests in kinds.items():
        for request, answer in zip(requests, getattr(model, kind)(requests), strict=True):
            request.resps = [answer] * (request.repeats or 1)
    found: dict[tuple[str, str], Marks] = {}
    with quiet():
        for each in suite.tasks:
            for key, values in _judged(each, suite.name).items():
                metric, filter_name = key
                aggregate = each.aggregation().get(metric)
                better = bool(each.higher_is_better().get(metric, True))
                mean = aggregate is None or getattr(aggregate, "__name__", "") in ("mean", "nanmean")
                marks = found.setdefault(key, Marks(metric, "" if filter_name == "none" else filter_name, better, [],
                                                    None if mean else aggregate))
                marks.values.extend(values)
    return list(found.values())


def _judged(made: Any, name: str) -> dict[tuple[str, str], list[Any]]:
    """``_values``, for which a task may run code of its own."""
    try:
        return _values(made)
    except Exception as error:
        raise Refused(f"judge the answers to {name}", found=_said(error), do="mend the task, or choose another one") from error


def _values(made: Any) -> dict[tuple[str, str], list[Any]]:
    """By (metric, filter), what is said of each document."""
    made.apply_filters()
    documents: dict[int, list[Any]] = {}
    for request in made.instances:
        documents.setdefault(request.doc_id, []).append(request)
    found: dict[tuple[str, str], list[Any]] = {}
    for filter_name in made.instances[0].filtered_resps:
        for requests in documents.values():
            requests.sort(key=lambda request: request.idx)
            answers = [request.filtered_resps[filter_name] for request in requests]
            for metric, value in made.process_results(requests[0].doc, answers).items():
                found.setdefault((metric, filter_name), []).append(value)
    return found


def language_model(speaker: Speaker) -> Any:
    """The speaker as an ``lm_eval.api.model.LM``, which ``lm_eval.evaluate`` takes too."""
    from lm_eval.api.model import LM

    class Spoken(LM):  # type: ignore[misc,unused-ignore]
        """Texts go in and come out; see ``LM`` for what each method is to give."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return speaker.likelihoods([pair(speaker, *request.args) for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return speaker.rolling([speaker.encode(request.args[0]) for request in requests], length=LONGEST_WINDOW)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return _written(speaker, [request.args for request in requests])

    return Spoken()


def pair(speaker: Speaker, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Both as tokens. Spaces at the end of the context go to the continuation, for tokens begin with spaces and do not end with them; and
    both are cut from the tokens of the whole, as ``lm_eval.api.model.TemplateLM`` does.
    """
    if not context:
        wanted = speaker.encode(continuation, special=False)
        return ([speaker.start], wanted) if wanted[:1] != [speaker.start] else (wanted[:1], wanted[1:])
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    before = speaker.encode(context)
    wanted = speaker.encode(context + continuation)[len(before) :]
    return before, wanted or speaker.encode(continuation, special=False)  # none: the two had grown into one token


def _written(speaker: Speaker, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """The texts for prompts with their settings, those with the same settings together."""
    alike: dict[str, list[int]] = {}
    for at, (_, settings) in enumerate(asked):
        alike.setdefault(digest(settings), []).append(at)
    found = [""] * len(asked)
    for places in alike.values():
        most, until = _settings(asked[places[0]][1])
        texts = speaker.written([speaker.encode(asked[at][0]) for at in places], most=most, until=until)
        for at, text in zip(places, texts, strict=True):
            found[at] = text
    return found


def _settings(said: dict[str, Any]) -> tuple[int, list[str]]:
    """How many tokens may be written, and what ends them. Raises Unsupported where they are to be drawn."""
    if said.get("do_sample") and said.get("temperature", 1.0) > 0:
        raise Unsupported("score a task of drawn texts", found=f"temperature {said.get('temperature', 1.0)}",
                          do="choose a task whose texts are the likeliest ones: two draws cannot be compared")
    until = said.get("until") or []
    most = next((said[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if said.get(name)), MOST_TOKENS)
    return int(most), [until] if isinstance(until, str) else list(until)
