"""``optimize``: try, measure, judge, choose, and write down why."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from whet.compress.artifacts import MODEL_NAME, load, original_artifact, read_artifact, source_file, tool_versions, write_artifact
from whet.compress.data import Dataset, check_overlap, load_data, split
from whet.compress.evaluate import DEFAULT_FIDELITY, Metric, fidelity_quantity, find_metric
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.optimize import words
from whet.compress.optimize.bench import Bench
from whet.compress.optimize.blame import damage, sentences, slower
from whet.compress.optimize.choose import closest, winner, with_front
from whet.compress.optimize.gates import Limits, gates_for, measured_by
from whet.compress.optimize.kernels import kernels_of, layer_times, operator_reports
from whet.compress.optimize.layers import layer_reports
from whet.compress.optimize.search import INTEGER, Idea, faster_in_float, gentler, other_ideas, range_ideas
from whet.compress.optimize.trials import Workshop
from whet.compress.plan import changes_of
from whet.compress.recipes import as_target
from whet.compress.report import write_report
from whet.compress.runtime import one_inference, outputs_of
from whet.core.artifact import MANIFEST_NAME
from whet.core.errors import Refused
from whet.core.gate import Gate, judge
from whet.core.outcome import GOALS, Outcome, Trial
from whet.core.progress import task
from whet.core.recipe import Recipe, Step
from whet.core.target import Target
from whet.device.files import new_folder, write_file
from whet.device.machine import describe, stamp

ORIGINAL = "original"
# Where no limit of the drop is given; fidelity has its own (docs/metrics.md).
DEFAULT_DROP = 0.01
SHARES = frozenset({"accuracy", "f1", "auc", "flips"})  # metrics from 0 to 1, beside the top-k ones
CALIBRATION_SAMPLES = 300


def optimize(model: Any, *, data: Any, out: str | os.PathLike[str], calibration: Any = None, metric: str | Callable[..., Any] | None = None,
             target: Target | str = "host", minimize: str = "latency", max_drop: float | None = None, max_latency_ms: float | None = None,
             max_size_bytes: float | None = None, max_memory_bytes: float | None = None, confidence: float = 0.95, seconds: float = 2.0,
             time_budget_s: float | None = None, example_inputs: Any = None, seed: int = 0, command: str = "") -> Outcome:
    """Find the best version of ``model`` for ``target``, measure everything, and ship nothing that is worse than asked.

    model: whatever ``whet.load`` takes. data: samples to judge by (see ``whet.load_data``); with labels ``metric`` is "accuracy" by
    default, without labels "fidelity" to the original. calibration: samples to find ranges by, which must not be among ``data``;
    where none are given they are split off ``data``. minimize: latency, size, memory or energy.
    max_drop: how much of the metric may be lost, 0.01 = one point of accuracy; the one-sided bound of the drop at ``confidence`` is
    what must be below it. seconds: of timing, for each candidate. time_budget_s: no trial begins after that; None tries all.

    Writes into the folder ``out``: best/ (model.onnx and whet.json), recipe.toml, report.html, report.json, trials/ (everything that
    was made; an interrupted or repeated call goes on from there). Where nothing passes there is no best/ and no recipe.toml.
    Raises Refused or Unsupported where the model, the data or the question will not do.
    """
    began, at = perf_counter(), stamp().at
    limits = Limits(max_drop, max_latency_ms, max_size_bytes, max_memory_bytes)
    _check_question(minimize, seconds, time_budget_s)
    graph, place = load(model, example_inputs=example_inputs), as_target(target)
    evaluation, calibrating, notes = _data(graph, data, calibration, seed)
    chosen = find_metric(metric or ("accuracy" if evaluation.labels is not None else "fidelity"))
    with _folder(Path(out)) as folder:
        bench, parent_id = _bench(graph, model, folder, evaluation, chosen, place, confidence, seconds)
        first = _original_trial(bench, parent_id)
        _check_known(minimize, bench)
        default = _default_drop(chosen, bench, first) if max_drop is None else max_drop
        values = {name: found.value for name, found in first.measurements.items() if found.value is not None}
        gates = gates_for(minimize, limits, place, values, default)
        first = replace(first, verdict=judge(gates, first.measurements))
        _check_provable(gates[0], first, evaluation)
        search = _Search(Workshop(bench, calibrating, folder / "trials", parent_id), gates, minimize, began, time_budget_s)
        trials = with_front((first, *search.run()))
        best = winner(trials, minimize, ORIGINAL)
        outcome = Outcome(
            graph.origin, place.name, minimize, chosen.name, gates, trials, best, words.headline(trials, best, minimize, evaluation),
            closest="" if best else closest(trials, ORIGINAL), data=_described(evaluation, calibrating), machine=describe().to_plain(),
            tools=tool_versions(), command=command, notes=(*notes, *words.notes(place, trials, search.late)), began=at,
        )
        outcome = _explained(outcome, bench, search)
        return _written(replace(outcome, seconds=round(perf_counter() - began, 1)), folder)


class _Search:
    """Goes through the ideas; what the first integer model shows decides what comes next."""

    def __init__(self, workshop: Workshop, gates: tuple[Gate, ...], goal: str, began: float, budget_s: float | None) -> None:
        self.workshop, self.gates, self.goal, self.began, self.budget_s = workshop, gates, goal, began, budget_s
        self.damage: Mapping[str, float] | None = None
        self.late = False
        self.seen: list[tuple[Step, ...]] = []

    def run(self) -> tuple[Trial, ...]:
        bench = self.workshop.bench
        with task("trying", None) as self.progress:
            done = self._tried((INTEGER,))
            done += self._tried(self._slow_in_integers(done))
            done += self._tried(range_ideas(_float_layers(done, self.goal)))
            done += self._tried(other_ideas(bench.inventory, bench.target, self.goal))
            if not any(trial.passed for trial in done):
                done += self._tried(self._harmful(done))
        return tuple(done)

    def _tried(self, ideas: Iterable[Idea]) -> list[Trial]:
        """The trials of the ideas, as many as there is time for; a recipe that another idea had before is not listed again."""
        done = []
        for idea in ideas:
            if idea.recipe.steps in self.seen:
                continue
            self.seen.append(idea.recipe.steps)
            if self.budget_s is not None and perf_counter() - self.began > self.budget_s:
                self.late = True
                break
            trial = self.workshop.trial(idea, self.gates)
            self.progress.advance(note=words.progress(trial))
            done.append(trial)
        return done

    def _slow_in_integers(self, done: Sequence[Trial]) -> tuple[Idea, ...]:
        """Layers that are slower in integers than in float stay in float."""
        bench = self.workshop.bench
        if not bench.target.here or not done or done[0].status != "measured":
            return ()
        made = load(self.workshop.model_of(done[0]).parent)
        before, after = (layer_times(graph, kernels_of(graph, bench.feeds, bench.target.threads))
                         for graph in (bench.original.folded(), made))
        weighted = [layer.name for layer in bench.inventory.layers if layer.op in ("Conv", "Gemm", "MatMul") and layer.weight_shape]
        return faster_in_float(before, after, weighted)

    def _harmful(self, done: Sequence[Trial]) -> tuple[Idea, ...]:
        """Where the integer models lose too much: the layers that do most harm stay in float."""
        lossy = [trial for trial in done if _is_integer(trial) and trial.verdict is not None
                 and any(reason.measurement == "drop" and not reason.passed for reason in trial.verdict.reasons)]
        if not lossy:
            return ()
        step = min(lossy, key=lambda trial: trial.verdict.excess if trial.verdict else 0.0).recipe.steps[0]
        return gentler(self.find_damage(step), step.exclude, step.options)

    def find_damage(self, step: Step) -> Mapping[str, float]:
        """What each layer does to the output when it alone is quantised; found once."""
        if self.damage is None:
            bench = self.workshop.bench
            self.damage = damage(bench.original, step, bench.target, self.workshop.calibration)
        return self.damage


def _is_integer(trial: Trial) -> bool:
    return trial.status == "measured" and trial.recipe.steps[0].technique == "static"


def _float_layers(done: Sequence[Trial], goal: str) -> tuple[str, ...]:
    """The layers that the best integer model so far leaves in float."""
    integer = [trial for trial in done if _is_integer(trial)]
    best = winner(integer, goal, ORIGINAL)
    found = next((trial for trial in integer if trial.name == best), None)
    if found is None and integer:
        found = min(integer, key=lambda trial: trial.verdict.excess if trial.verdict else 0.0)
    return found.recipe.steps[0].exclude if found else ()


def _check_question(goal: str, seconds: float, budget_s: float | None) -> None:
    """All that can be refused before the model is read."""
    measured_by(goal)
    for name, value in (("seconds", seconds), ("time_budget_s", budget_s)):
        if value is not None and not 0 <= value < math.inf:
            raise Refused(f"optimise with {name} = {value}", found="no length of time", do="give seconds, 0 or more")


def _data(graph: GraphModel, data: Any, calibration: Any, seed: int) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """(evaluation, calibration, notes). Calibration is split off where it is not given; an overlap is Refused."""
    evaluation = load_data(data, graph.inputs)
    if calibration is not None:
        calibrating = load_data(calibration, graph.inputs)
        check_overlap(calibrating, evaluation)
        return evaluation, calibrating, ()
    if len(evaluation) < 4:
        raise Refused("split calibration samples off the data", found=f"{len(evaluation)} samples", do="give more data, or --calibration")
    count = min(CALIBRATION_SAMPLES, max(len(evaluation) // 5, 2))
    calibrating, rest = split(evaluation, count=count, seed=seed)
    return rest, calibrating, (f"{len(calibrating)} samples were split off the evaluation data for calibration; they are not evaluated on",)


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """The output folder. Finished trials in it stay, whatever happens: a later call goes on from them. Where there are none, a folder
    that was made here goes again."""
    made = [folder for folder in (out / "trials", out) if not folder.exists()]
    if (out / "best").exists() and not (out / "best" / MANIFEST_NAME).is_file():
        raise Refused(f"write {out / 'best'}", found="it is there already, and not what Whet wrote", do="choose another output folder")
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"write into {out}", found=error.strerror or str(error), do="choose another output folder") from error
    try:
        with _locked(out):
            yield out
    except BaseException:
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else optimises into the folder meanwhile: two would slow each other down, and take away each other's files."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that knows no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused(f"optimise into {folder}", found="another run is at work there",
                              do="wait until it has ended, or choose another output folder") from error
        yield
    finally:
        os.close(handle)


def _bench(graph: GraphModel, source: Any, folder: Path, data: Dataset, metric: Any, target: Target, confidence: float,
           seconds: float) -> tuple[Bench, str]:
    """The bench, and the id of the original artifact."""
    given = source_file(source)
    artifact = original_artifact(graph, given)
    path = given or folder / "trials" / ORIGINAL / MODEL_NAME
    if given is None:  # always: what lies there may be another model, of an earlier call
        write_artifact(graph, path.parent, parent=None)
    outputs = outputs_of(graph, data, threads=target.threads if target.here else None)
    feeds = one_inference(graph, data)
    found = replace(inspect(graph), file_bytes=artifact.size_bytes)
    return Bench(graph, path, found, data, metric, target, outputs, feeds, confidence, seconds), graph.artifact_id or artifact.artifact_id


def _original_trial(bench: Bench, parent_id: str) -> Trial:
    measured = bench.measure(bench.original, bench.path, {})
    return Trial(ORIGINAL, Recipe(), measurements={name: replace(found, artifact=parent_id) for name, found in measured.items()})


def _check_provable(gate: Gate, original: Trial, data: Dataset) -> None:
    """Refused where not even the original beside itself would be shown to be good enough: no candidate ever could."""
    drop = original.measurements[gate.measurement]
    if drop.interval is None or drop.interval.high <= gate.limit:
        return
    needed = math.ceil(len(data) * drop.interval.high / gate.limit * 1.05) if gate.limit else None
    do = f"evaluate on about {needed} samples, or ask for less: a larger --max-drop, or a lower --confidence"
    raise Refused(f"prove a drop of at most {gate.limit:g} with {len(data)} samples",
                  found=f"even a model that gives the same answers would only be shown to lose less than {drop.interval.high:.2g}",
                  do=do if needed else "give a --max-drop above 0; a share of 0 cannot be proven with any number of samples")


def _check_known(goal: str, bench: Bench) -> None:
    """Refused where the goal can be neither measured nor estimated on the target: no candidate could be shown to be better."""
    if bench.target.here:
        return
    found = bench.measure(bench.original, bench.path, changes_of(bench.original, INTEGER.recipe, bench.target)).get(GOALS[goal])
    if found is None or found.value is None:
        why = found.why if found else "there is no model of it for another machine"
        raise Refused(f"minimise {goal} on {bench.target.name}", found=why,
                      do="use --minimize size, or a target table of your own with [macs_per_s] or [[speeds]] (docs/targets.md)")


def _default_drop(metric: Metric, bench: Bench, original: Trial) -> float:
    """The limit of the drop where none was given: one point of a share, 1 % of any other metric's value, and fidelity's own."""
    if metric.name == "fidelity":
        return DEFAULT_FIDELITY[fidelity_quantity(bench.outputs)]
    if metric.name in SHARES or metric.name.startswith("top"):
        return DEFAULT_DROP
    found = original.measurements.get(metric.name)
    if found is None or not found.value:
        raise Refused(f"take a default limit for the drop of {metric.name}", found="the original's value is 0 or not known",
                      do="give --max-drop")
    return DEFAULT_DROP * abs(found.value)


def _described(evaluation: Dataset, calibration: Dataset) -> dict[str, Any]:
    return {name: {"source": each.source, "samples": len(each), "sha256": each.content_hash, "labels": each.labels is not None}
            for name, each in (("evaluation", evaluation), ("calibration", calibration))}


def _explained(outcome: Outcome, bench: Bench, search: _Search) -> Outcome:
    """Layers of the winner, or of what came closest; and the blame where nothing passed."""
    trial = outcome.trial(outcome.winner or outcome.closest)
    if trial is None or not trial.path:
        return outcome
    failed = {reason.measurement for reason in trial.verdict.reasons if not reason.passed} if trial.verdict else set()
    if "drop" in failed and _is_integer(trial):
        search.find_damage(trial.recipe.steps[0])
    made = load(search.workshop.model_of(trial).parent)
    folded, threads = bench.original.folded(), bench.target.threads
    before, after = (kernels_of(each, bench.feeds, threads) for each in (folded, made)) if bench.target.here else ((), ())
    layers = layer_reports(folded, made, search.workshop.calibration, (before, after), search.damage)
    blame = sentences(search.damage or {}, {layer.name: layer.op for layer in bench.inventory.layers}) if "drop" in failed else ()
    if {"latency_ratio", "latency_ms"} & failed:
        blame += slower(layers)
    return replace(outcome, layers=layers, operators=operator_reports(before, after), blame=blame)


def _written(outcome: Outcome, folder: Path) -> Outcome:
    """best/, recipe.toml and the reports; what an earlier call left there is replaced or taken away."""
    trial = outcome.trial(outcome.winner)
    if trial is not None and trial.artifact is not None:
        with new_folder(folder / "best") as best:
            made = (folder / trial.path).parent
            read_artifact(made)  # nothing is shipped that is not what was measured
            shutil.copytree(made, best, dirs_exist_ok=True)
        write_file(folder / "recipe.toml", trial.recipe.to_text())
        shipped = tuple(replace(each, path=f"best/{MODEL_NAME}") if each is trial else each for each in outcome.trials)
        outcome = replace(outcome, trials=shipped)
    else:
        _take_away(folder)
    write_report(outcome, folder)
    return outcome


def _take_away(folder: Path) -> None:
    """A best/ of an earlier, laxer question must not pass for the answer to this one."""
    if (folder / "best").is_dir():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".old-") as old:
            os.replace(folder / "best", Path(old) / "best")
    (folder / "recipe.toml").unlink(missing_ok=True)
