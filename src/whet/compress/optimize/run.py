"""``optimize``: try, measure, judge, choose, and write down why."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from whet.compress.artifacts import MODEL_NAME, load, original_artifact, source_file, tool_versions, write_artifact
from whet.compress.bodies import checkpoint_in
from whet.compress.data import Dataset, apart
from whet.compress.evaluate import find_metric
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.optimize import words
from whet.compress.optimize.bench import Bench
from whet.compress.optimize.blame import sentences, slower
from whet.compress.optimize.choose import closest, winner, with_front
from whet.compress.optimize.gates import Limits, gates_for
from whet.compress.optimize.kernels import kernels_of, operator_reports
from whet.compress.optimize.layers import layer_reports
from whet.compress.optimize.place import taken, written
from whet.compress.optimize.question import check_known, check_provable, check_question, default_drop
from whet.compress.optimize.searching import Search, is_integer
from whet.compress.optimize.trials import Workshop
from whet.compress.recipes import as_target
from whet.compress.runtime import one_inference, outputs_of
from whet.core.errors import Refused
from whet.core.gate import judge, loss_gate
from whet.core.outcome import ORIGINAL, Outcome, Trial
from whet.core.recipe import Recipe
from whet.core.target import Target
from whet.device.machine import describe, stamp

DEFAULT_LOSS = {False: "kl<0.02", True: "cosine<0.01"}  # of a language model, where the caller says nothing; of an encoder, True


def optimize(model: Any, *, data: Any, out: str | os.PathLike[str], calibration: Any = None, metric: str | Callable[..., Any] | None = None,
             target: Target | str = "host", minimize: str | None = None, max_drop: float | str | None = None,
             max_latency_ms: float | None = None, max_size_bytes: float | None = None, max_memory_bytes: float | None = None,
             confidence: float = 0.95, seconds: float = 2.0, time_budget_s: float | None = None, example_inputs: Any = None,
             seed: int = 0, command: str = "") -> Outcome:
    """Find the best version of ``model`` for ``target``, measure everything, and ship nothing that is worse than asked.

    model: whatever ``whet.load`` takes, or the folder of a language model: then data and calibration are text, the goal is size, and
    max_drop is "kl<0.02" or "nats<0.02" (a number is nats), of an encoder "cosine<0.01" or "sentence<0.01" (a number is the first).
    data: samples to judge by (see ``whet.load_data``); with labels ``metric`` is "accuracy" by default, without labels
    "fidelity" to the original. calibration: samples to find ranges by, which must not be among ``data``; where none are given they are
    split off ``data``. minimize: latency (the default), size, memory, energy or drop.
    max_drop: how much of the metric may be lost, 0.01 = one point of accuracy; the one-sided bound of the drop at ``confidence`` is
    what must be below it. seconds: of timing, for each candidate. time_budget_s: no trial begins after that; None tries all.

    Writes into the folder ``out``: best/ (model.onnx and whet.json), recipe.toml, report.html, report.json, trials/ (everything that
    was made; an interrupted or repeated call goes on from there). Where nothing passes there is no best/ and no recipe.toml.
    Raises Refused or Unsupported where the model, the data or the question will not do.
    """
    language = checkpoint_in(model)
    if language is not None:
        usual = DEFAULT_LOSS[encoder := language.family.encoder]
        if metric is not None or minimize not in (None, "size") or any((max_latency_ms, max_size_bytes, max_memory_bytes)):
            raise Refused("optimise a language model by more than its size and what it loses", found="only these are measured",
                          do=f'leave the metric and other limits out, minimize "size", and ask for max_drop="{usual}"')
        from whet.compress.checkpoint.optimize import optimize_checkpoint

        return optimize_checkpoint(language, data=data, calibration=calibration, out=Path(out), target=as_target(target), seed=seed,
                                   gate=loss_gate(usual if max_drop is None else max_drop, encoder=encoder), confidence=confidence,
                                   time_budget_s=time_budget_s, command=command)
    if isinstance(max_drop, str):
        raise Refused(f"lose no more than {max_drop!r}", found="a graph, whose metric is chosen by name",
                      do='give metric="kl" and a number')
    minimize = minimize or "latency"
    began, at = perf_counter(), stamp().at
    limits = Limits(max_drop, max_latency_ms, max_size_bytes, max_memory_bytes)
    check_question(minimize, seconds, time_budget_s)
    graph, place = load(model, example_inputs=example_inputs), as_target(target)
    evaluation, calibrating, notes = apart(data, calibration, graph.inputs, seed=seed)
    chosen = find_metric(metric or ("accuracy" if evaluation.labels is not None else "fidelity"))
    with taken(Path(out)) as folder:
        bench, parent_id = _bench(graph, model, folder, evaluation, chosen, place, confidence, seconds)
        first = _original_trial(bench, parent_id)
        check_known(minimize, bench)
        default = default_drop(chosen, bench, first) if max_drop is None else max_drop
        values = {name: found.value for name, found in first.measurements.items() if found.value is not None}
        gates = gates_for(minimize, limits, place, values, default)
        first = replace(first, verdict=judge(gates, first.measurements))
        check_provable(gates[0], first, evaluation)
        search = Search(Workshop(bench, calibrating, folder / "trials", parent_id), gates, minimize, began, time_budget_s)
        trials = with_front((first, *search.run()))
        best = winner(trials, minimize, ORIGINAL)
        outcome = Outcome(
            graph.origin, place.name, minimize, chosen.name, gates, trials, best, words.headline(trials, best, minimize, evaluation),
            closest="" if best else closest(trials, ORIGINAL), data=_described(evaluation, calibrating), machine=describe().to_plain(),
            tools=tool_versions(), command=command, notes=(*notes, *words.notes(place, trials, minimize, search.late)), began=at,
            stages=tuple(search.stages),
        )
        outcome = _explained(outcome, bench, search)
        return written(replace(outcome, seconds=round(perf_counter() - began, 1)), folder)


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


def _described(evaluation: Dataset, calibration: Dataset) -> dict[str, Any]:
    return {name: {"source": each.source, "samples": len(each), "sha256": each.content_hash, "labels": each.labels is not None}
            for name, each in (("evaluation", evaluation), ("calibration", calibration))}


def _explained(outcome: Outcome, bench: Bench, search: Search) -> Outcome:
    """Layers of the winner, or of what came closest; and the blame where nothing passed."""
    trial = outcome.trial(outcome.winner or outcome.closest)
    if trial is None or not trial.path:
        return outcome
    failed = {reason.measurement for reason in trial.verdict.reasons if not reason.passed} if trial.verdict else set()
    integer = next((each for each in outcome.trials if is_integer(each)), None)
    if "drop" in failed and integer is not None:  # of the first and plainest one, in which no layer was left out yet
        search.find_damage(next(step for step in integer.recipe.steps if step.technique == "static"))
    made = load(search.workshop.model_of(trial).parent)
    folded, threads = bench.original.folded(), bench.target.threads
    before, after = (kernels_of(each, bench.feeds, threads) for each in (folded, made)) if bench.target.here else ((), ())
    layers = layer_reports(folded, made, search.workshop.calibration, (before, after), search.damage)
    blame = sentences(search.damage or {}, {layer.name: layer.op for layer in bench.inventory.layers})
    if {"latency_ratio", "latency_ms"} & failed:
        blame += slower(layers)
    return replace(outcome, layers=layers, operators=operator_reports(before, after), blame=blame)
