"""``compare``: two models on the same samples and in the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from whet.compress.artifacts import load, source_file
from whet.compress.bodies import checkpoint_in
from whet.compress.data import Dataset, load_data
from whet.compress.evaluate import Comparison, compare_outputs
from whet.compress.graph import GraphModel
from whet.compress.measure import opened_files
from whet.compress.runtime import one_inference, outputs_of
from whet.core.document import Document
from whet.core.errors import Refused
from whet.core.measurement import Measurement
from whet.device.latency import interleave
from whet.device.memory import disk_size, memory_use
from whet.device.session import SPINNING_STOP, example_feeds, open_session

if TYPE_CHECKING:
    from whet.compress.checkpoint import Checkpoint
    from whet.compress.checkpoint.compare import LanguageComparison
    from whet.compress.checkpoint.states import EncoderComparison
    from whet.compress.checkpoint.tasks import TaskComparison


@dataclass(frozen=True)
class SideBySide(Document):
    """Parent and candidate. parent, candidate: size, latency, memory by name. quality: paired, None where no data was given."""

    parent: Mapping[str, Measurement]
    candidate: Mapping[str, Measurement]
    quality: Comparison | None = None


def compare(parent: Any, candidate: Any, *, data: Any = None, metric: str | Callable[..., Any] | None = None, threads: int | None = None,
            confidence: float = 0.95, seconds: float = 2.0, example_inputs: Any = None, tasks: str | Sequence[str] | None = None,
            limit: int | None = None, shots: int | None = None) -> SideBySide | LanguageComparison | EncoderComparison | TaskComparison:
    """How the candidate does beside its parent: quality paired over samples, latency interleaved in one run, memory, size.

    parent, candidate: whatever ``whet.load`` takes, or folders of language models or encoders, which are compared on a text (``data``);
    language models also by ``tasks`` of lm_eval ("arc_easy,hellaswag"). Their inputs must be the same. data: as ``whet.load_data`` takes
    it; metric: "accuracy" by default where there are labels, else "fidelity". limit: so many documents of each task; shots: examples
    before each question. Raises Refused where the models do not take the same inputs.
    """
    language = checkpoint_in(parent)
    if tasks is None and (limit is not None or shots is not None):
        raise Refused(f"compare with {'limit' if shots is None else 'shots'}", found="no tasks", do="name some with tasks")
    if language is not None and tasks is not None:
        return _by_tasks(language, candidate, data, metric, confidence, tasks, limit, shots)
    if language is not None:
        return _languages(language, candidate, data, metric, confidence)
    if tasks is not None:
        raise Refused("score tasks of text", found="no folder of a language model", do="leave the tasks out, and give data")
    first, second = load(parent, example_inputs=example_inputs), load(candidate, example_inputs=example_inputs)
    names = [[spec.name for spec in model.inputs] for model in (first, second)]
    if sorted(names[0]) != sorted(names[1]):
        raise Refused("compare two models", found=f"one takes {', '.join(names[0])}, the other {', '.join(names[1])}",
                      do="compare a model with what was made of it")
    if data is None and metric is not None:
        raise Refused("compare by a metric", found="no data", do="give data, or leave the metric out to compare costs alone")
    samples = None if data is None else load_data(data, first.inputs)  # once: an iterable may be used up by reading it
    quality = None if samples is None else _quality(first, second, samples, metric, threads, confidence)
    costs = _costs((first, parent), (second, candidate), samples, threads, seconds)
    return SideBySide(*costs, quality=quality)


def _languages(parent: Checkpoint, candidate: Any, data: Any, metric: str | Callable[..., Any] | None,
               confidence: float) -> LanguageComparison | EncoderComparison:
    from whet.compress.checkpoint.compare import compare_checkpoints

    if metric is not None:
        how = "the cosine similarity of their states" if parent.family.encoder else "nats, divergence and top token"
        raise Refused("compare two language models by a metric of your own", found=f"they are compared by {how}",
                      do="leave the metric out")
    if data is None:
        raise Refused("compare two language models", found="no text", do="give some, a .txt or .jsonl file; or tasks")
    return compare_checkpoints(parent, candidate, data, confidence=confidence)


def _by_tasks(parent: Checkpoint, candidate: Any, data: Any, metric: str | Callable[..., Any] | None, confidence: float,
              tasks: str | Sequence[str], limit: int | None, shots: int | None) -> TaskComparison:
    """By tasks, and on a text where there is one."""
    from whet.compress.checkpoint import open_checkpoint
    from whet.compress.checkpoint.tasks import compare_by_tasks

    asks_text = (data is not None or metric is not None) and not parent.family.encoder  # which is refused below
    text = cast("LanguageComparison", _languages(parent, candidate, data, metric, confidence)) if asks_text else None
    found = compare_by_tasks(parent, open_checkpoint(candidate), tasks, limit=limit, shots=shots, confidence=confidence)
    return replace(found, text=text)


def _quality(first: GraphModel, second: GraphModel, samples: Dataset, metric: str | Callable[..., Any] | None, threads: int | None,
             confidence: float) -> Comparison:
    expected, found = (outputs_of(model, samples, threads=threads) for model in (first, second))
    chosen = metric or ("accuracy" if samples.labels is not None else "fidelity")
    return compare_outputs(expected, found, samples.labels, chosen, confidence=confidence, data=samples.content_hash)


def _costs(first: tuple[GraphModel, Any], second: tuple[GraphModel, Any], samples: Dataset | None, threads: int | None,
           seconds: float) -> tuple[dict[str, Measurement], dict[str, Measurement]]:
    feeds = one_inference(first[0], samples) if samples is not None else example_feeds(first[0].inputs)
    with opened_files(first[0], source_file(first[1])) as one, opened_files(second[0], source_file(second[1])) as other:
        files, models = {"parent": one, "candidate": other}, {"parent": first[0], "candidate": second[0]}
        sessions = {name: open_session(paths[0], threads=threads, options={**models[name].session_options, SPINNING_STOP: "1"})
                    for name, paths in files.items()}
        times = interleave(sessions, dict.fromkeys(sessions, feeds), parent="parent", seconds=seconds)
        found = {}
        for name, paths in files.items():
            memory = memory_use(paths[0], feeds=feeds, threads=threads, options=models[name].session_options)
            every = (*times[name].measurements, *memory, disk_size(paths))
            found[name] = {each.name: replace(each, artifact=models[name].artifact_id) for each in every}
    return found["parent"], found["candidate"]
