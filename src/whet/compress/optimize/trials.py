"""One trial: make a candidate, measure it, keep it. What was done once is not done again."""

from __future__ import annotations

import hashlib
import marshal
import pickle
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from types import CodeType
from uuid import uuid4

from whet.compress.apply import apply_recipe
from whet.compress.artifacts import MODEL_NAME, code_version, load, write_artifact
from whet.compress.data.dataset import Dataset
from whet.compress.evaluate import Metric
from whet.compress.journal import Journal
from whet.compress.optimize.bench import Bench
from whet.compress.optimize.search import Idea
from whet.compress.plan import changes_of
from whet.core.document import digest
from whet.core.errors import Untrusted, WhetError
from whet.core.gate import Gate, judge
from whet.core.outcome import Trial
from whet.core.recipe import Recipe
from whet.device.files import new_folder, write_file
from whet.device.machine import describe

TRIAL_NAME = "trial.json"


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where trials are made. folder: lies in the output folder and holds one folder a trial, named by the hash of all that went in."""

    bench: Bench
    calibration: Dataset
    folder: Path
    parent_id: str

    def trial(self, idea: Idea, gates: tuple[Gate, ...]) -> Trial:
        """The idea made and measured, or read back where that was done before. A failure is a trial too, with the reason."""
        if idea.skip:
            return Trial(idea.name, idea.recipe, "skipped", idea.skip)
        place = self.folder / self.key(idea.recipe)
        found = _kept(place)
        if found is None:
            try:
                found = self._made(idea, place)
            except Untrusted:
                raise
            except WhetError as error:
                return Trial(idea.name, idea.recipe, "failed", str(error))
        return replace(found, name=idea.name, verdict=judge(gates, found.measurements))

    def key(self, recipe: Recipe) -> str:
        """16 hex digits of everything that the trial's figures depend on."""
        bench = self.bench
        machine = describe()
        parts = [code_version(), self.parent_id, recipe.to_plain().get("step"), bench.target.digest, self.calibration.content_hash,
                 bench.data.content_hash, metric_key(bench.metric), bench.confidence, bench.seconds,
                 machine.fingerprint, machine.onnxruntime]
        return digest(parts)[:16]

    def model_of(self, trial: Trial) -> Path:
        """The file of a trial's model."""
        return self.folder.parent / trial.path

    def _made(self, idea: Idea, place: Path) -> Trial:
        began = perf_counter()
        journal = Journal.beside(place, lambda: self.key(idea.recipe))
        model = apply_recipe(self.bench.original, idea.recipe, self.bench.target, calibration=self.calibration, journal=journal)
        seconds = perf_counter() - began
        with new_folder(place) as beside:
            made = beside / "artifact"
            artifact = write_artifact(model, made, parent=self.parent_id, recipe=idea.recipe, target=self.bench.target.name)
            measured = self.bench.measure(load(made), made / MODEL_NAME, changes_of(self.bench.original, idea.recipe, self.bench.target))
            for name, measurement in measured.items():
                measured[name] = replace(measurement, artifact=artifact.artifact_id)
            trial = Trial(idea.name, idea.recipe, artifact=artifact, path=f"{self.folder.name}/{place.name}/artifact/{MODEL_NAME}",
                          measurements=measured, seconds=round(seconds, 3))
            write_file(beside / TRIAL_NAME, trial.to_json())
        journal.forget()
        return trial


def metric_key(metric: Metric) -> str:
    """What tells one metric from another: its name, and all that a function of the user's depends on, as far as that can be told.

    That is its code, defaults and closure, and the file that it stands in. Where none of it can be told (an object that is called, a
    function of an extension module), the key is one that never comes again, so that no trial is taken for another's.
    """
    if not isinstance(metric.score, partial):
        return metric.name
    function = metric.score.args[0]
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return f"{metric.name} {uuid4()}"
    inside = [cell.cell_contents for cell in function.__closure__ or ()]
    try:
        known = marshal.dumps(code) + pickle.dumps((function.__defaults__, function.__kwdefaults__, inside))
    except Exception:  # whatever an object that cannot be pickled raises
        return f"{metric.name} {uuid4()}"
    file = Path(code.co_filename)
    return f"{metric.name} {hashlib.sha256(known + (file.read_bytes() if file.is_file() else b'')).hexdigest()}"


def _kept(place: Path) -> Trial | None:
    """The finished trial in that folder; None where there is none, or where it is damaged and must be made again."""
    try:
        trial = Trial.from_json((place / TRIAL_NAME).read_bytes())
        load(place / "artifact")
    except (OSError, WhetError):
        return None
    return trial
