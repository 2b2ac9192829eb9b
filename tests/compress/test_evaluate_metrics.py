"""Metrics by name: values against scikit-learn and plain formulas; how outputs and labels are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import entropy
from sklearn import metrics as sk

from whet.compress.evaluate import Comparison, compare_outputs, fidelity_quantity, find_metric
from whet.core.errors import Refused

RANDOM = np.random.default_rng(0)
LABELS = np.arange(90) % 3
LOGITS = (RANDOM.normal(size=(90, 3)) + 1.5 * np.eye(3)[LABELS]).astype(np.float32)
NOISY = (LOGITS + RANDOM.normal(size=LOGITS.shape) * 0.3).astype(np.float32)


def compared(parent: Any, candidate: Any, labels: Any, metric: Any, **more: Any) -> Comparison:
    as_dict = [each if isinstance(each, dict) else {"y": each} for each in (parent, candidate)]
    return compare_outputs(as_dict[0], as_dict[1], None if labels is None else np.asarray(labels), metric, **more)


def both(found: Comparison) -> tuple[float, float]:
    assert found.parent.value is not None
    assert found.candidate.value is not None
    return found.parent.value, found.candidate.value


@pytest.mark.parametrize(("metric", "wanted"), [
    ("accuracy", lambda y, z: sk.accuracy_score(y, z.argmax(1))),
    ("top2", lambda y, z: sk.top_k_accuracy_score(y, z, k=2)),
    ("top-2", lambda y, z: sk.top_k_accuracy_score(y, z, k=2)),
    ("F1", lambda y, z: sk.f1_score(y, z.argmax(1), average="macro")),
    ("auc", lambda y, z: sk.roc_auc_score(y, softmax(z, axis=1), multi_class="ovr")),
])
def test_metrics_of_many_classes_are_scikit_learns(metric: str, wanted: Any) -> None:
    found = compared(LOGITS, NOISY, LABELS, metric)
    assert both(found) == (pytest.approx(wanted(LABELS, LOGITS)), pytest.approx(wanted(LABELS, NOISY)))
    assert found.drop.value == pytest.approx(wanted(LABELS, LOGITS) - wanted(LABELS, NOISY))


@pytest.mark.parametrize("form", ["logits", "probabilities", "one logit", "one probability", "column"])
@pytest.mark.parametrize(("metric", "wanted"), [
    ("accuracy", lambda y, s: sk.accuracy_score(y, s > 0)), ("f1", lambda y, s: sk.f1_score(y, s > 0)), ("auc", sk.roc_auc_score),
])
def test_two_classes_in_every_form(form: str, metric: str, wanted: Any) -> None:
    labels = LABELS % 2
    scores = [np.random.default_rng(seed).normal(size=90) + labels for seed in (1, 2)]
    pair = [np.stack([np.zeros(90), score], axis=1) for score in scores]
    outputs = {"logits": pair, "probabilities": [softmax(each, axis=1) for each in pair], "one logit": scores,
               "one probability": [expit(score) for score in scores], "column": [score[:, None, None] for score in scores]}[form]
    assert both(compared(outputs[0], outputs[1], labels, metric)) == tuple(pytest.approx(wanted(labels, score)) for score in scores)


def test_the_threshold_is_the_parents() -> None:
    """A candidate whose logits happen to lie in 0..1 is not read as probabilities."""
    parent, candidate = np.array([-3.0, 2.0, 0.3]), np.array([0.1, 0.9, 0.3])
    assert both(compared(parent, candidate, [0, 1, 1], "accuracy")) == (1.0, pytest.approx(2 / 3))


def test_answers_given_as_whole_numbers() -> None:
    assert both(compared(np.array([[2], [0], [7]]), np.array([[2], [1], [7]]), [2, 0, 7], "accuracy")) == (1.0, pytest.approx(2 / 3))
    assert compared(np.array([2, 0, 7]), np.array([2, 1, 7]), [2, 0, 7], "accuracy").flips.value == pytest.approx(1 / 3)


def test_ties_go_to_the_first_class_in_accuracy_and_top_k_alike() -> None:
    tied = np.zeros((3, 3), np.float32)
    for k, wanted in (("accuracy", 1 / 3), ("top1", 1 / 3), ("top2", 2 / 3)):
        assert compared(tied, tied, [0, 1, 2], k).parent.value == pytest.approx(wanted)


@pytest.mark.parametrize(("metric", "wanted"), [("mae", sk.mean_absolute_error), ("rmse", sk.root_mean_squared_error)])
@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 4), (50, 2, 3)])
def test_regression_metrics_are_scikit_learns(metric: str, wanted: Any, shape: tuple[int, ...]) -> None:
    labels, parent, candidate = (np.random.default_rng(seed).normal(size=shape) for seed in range(3))
    found = compared(parent, candidate, labels, metric)
    values = [wanted(labels.ravel(), output.ravel()) for output in (parent, candidate)]
    assert both(found) == (pytest.approx(values[0]), pytest.approx(values[1]))
    assert found.drop.value == pytest.approx(values[1] - values[0])  # lower is better, so more error is a drop
    assert found.flips.value is None
    assert "no answer" in found.flips.why


def test_kl_is_scipys() -> None:
    p, q = softmax(LOGITS.astype(float), axis=1), softmax(NOISY.astype(float), axis=1)
    wanted = np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)])
    assert compared(LOGITS, NOISY, None, "kl").candidate.value == pytest.approx(wanted)
    assert compared(p, q, None, "kl").candidate.value == pytest.approx(wanted)
    one = np.array([[0.2], [0.9]]), np.array([[0.3], [0.6]])
    wanted = np.mean([entropy([0.8, 0.2], [0.7, 0.3]), entropy([0.1, 0.9], [0.4, 0.6])])
    assert compared(*one, None, "kl").drop.value == pytest.approx(wanted)


def test_kl_is_finite_where_the_candidate_gives_zero() -> None:
    found = compared(np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[1.0, 0.0], [0.9, 0.1]]), None, "kl")
    assert found.drop.value == pytest.approx((0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-10)) / 2)


def test_sqnr_and_the_worst_output() -> None:
    wanted = 10 * np.log10((LOGITS.astype(float) ** 2).sum() / ((LOGITS.astype(float) - NOISY) ** 2).sum())
    found = compared(LOGITS, NOISY, None, "sqnr_db")
    assert found.candidate.value == found.sqnr_db.value == pytest.approx(wanted)
    assert found.drop.value == pytest.approx(10 ** (-wanted / 10))
    assert (found.sqnr_db.unit, found.sqnr_db.direction, found.drop.direction) == ("dB", "higher", "lower")
    assert found.sqnr_db.interval is not None
    assert found.sqnr_db.interval.low < wanted < found.sqnr_db.interval.high
    more = compared({"a": LOGITS, "state": np.ones((90, 7, 2))}, {"a": NOISY, "state": np.full((90, 7, 2), 1.9)}, None, "sqnr_db")
    assert more.drop.value == pytest.approx(0.81)
    alone = compared({"a": LOGITS, "b": np.ones((90, 7))}, {"a": NOISY, "b": np.full((90, 7), 1.9)}, None, "sqnr_db", output="a")
    assert alone.drop.value == found.drop.value


@pytest.mark.parametrize(("outputs", "quantity"), [
    ({"y": LOGITS}, "flips"),
    ({"y": LOGITS[:, :, None, None]}, "flips"),
    ({"label": LABELS, "scores": LOGITS}, "flips"),
    ({"label": LABELS}, "flips"),
    ({"y": LOGITS[:, :1]}, "error_energy"),
    ({"y": LOGITS, "state": LOGITS}, "error_energy"),
    ({"y": np.zeros((4, 2, 5))}, "error_energy"),
])
def test_what_fidelity_means(outputs: dict[str, np.ndarray], quantity: str) -> None:
    assert fidelity_quantity(outputs) == quantity


@pytest.mark.parametrize(("parent", "labels", "metric", "message"), [
    (LOGITS, None, "accuracy", "no labels.*fidelity"),
    (LOGITS, LABELS + 1, "accuracy", "0 to 2: labels from 1 to 3.*labels - 1"),
    (LOGITS, LABELS - 1, "f1", "labels from -1 to 1"),
    (LOGITS, LABELS * 5, "auc", "labels from 0 to 10"),
    (LOGITS, np.eye(3)[LABELS], "accuracy", r"argmax\(1\)"),
    (LOGITS, LABELS + 0.5, "accuracy", "no whole numbers.*mae"),
    (LOGITS, LABELS[:5], "accuracy", "5 labels for 90 samples"),
    (LOGITS[:, 0], LABELS, "accuracy", "0 to 1: labels from 0 to 2"),
    (np.zeros((90, 4, 5)), LABELS, "accuracy", r"\[90, 4, 5\]"),
    (LOGITS, LABELS, "mae", r"labels of shape \[90\] for an output of shape \[90, 3\]"),
    (LOGITS, LABELS, "top3", "with 3 classes every answer is right"),
    (LOGITS[:, 0], LABELS % 2, "top2", r"not \[n, classes\]"),
    (LOGITS, LABELS * 0, "auc", "one class only"),
    (LABELS, LABELS, "auc", "no scores"),
    (np.zeros((90, 4, 5)), None, "kl", "no distribution"),
    (np.zeros((90, 4, 5)), None, "flips", "no answers"),
    (LABELS, None, "sqnr_db", "no float output"),
    (LOGITS * 0, None, "sqnr_db", "all zeros"),
    (np.full((90, 2, 2), np.inf), None, "fidelity", "infinity"),
    (LOGITS, LABELS, "acuracy", "there are accuracy, f1, auc.*topK"),
    (LOGITS, LABELS, "top0", "find the metric"),
    (LOGITS, LABELS, "no.such.module:f", "ModuleNotFoundError"),
    (LOGITS, LABELS, "gone.py:f", "no such file"),
    (LOGITS, LABELS, "math:no_such", "AttributeError"),
    (LOGITS, LABELS, "math:pi", "pi is a float"),
])
def test_what_does_not_fit_is_refused(parent: np.ndarray, labels: Any, metric: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        compared(parent, parent, labels, metric)


def test_float_labels_that_are_whole_are_classes() -> None:
    assert compared(LOGITS, NOISY, LABELS.astype(float), "accuracy").drop == compared(LOGITS, NOISY, LABELS[:, None], "accuracy").drop


def per_sample(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.abs(outputs.argmax(1) - labels) / 2.5


def right(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (outputs.argmax(1) == labels).astype(float)


def scalar(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float((outputs.argmax(1) == labels).mean())


def test_own_functions_of_each_kind() -> None:
    builtin = compared(LOGITS, NOISY, LABELS, "accuracy")
    mine, whole = compared(LOGITS, NOISY, LABELS, right), compared(LOGITS, NOISY, LABELS, scalar)
    assert (mine.metric, whole.metric) == ("right", "scalar")
    assert mine.drop.value == pytest.approx(builtin.drop.value)
    assert whole.drop.value == pytest.approx(builtin.drop.value)
    assert mine.drop.interval == builtin.drop.interval
    assert (mine.lost, mine.gained) == (builtin.lost, builtin.gained)
    assert whole.drop.interval is not None
    assert whole.drop.interval.low <= whole.drop.value <= whole.drop.interval.high  # type: ignore[operator]
    assert "200" in whole.drop.method


def test_the_direction_of_an_own_function() -> None:
    def loss(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return per_sample(outputs, labels)

    assert find_metric(loss).direction == "higher"
    up = compared(LOGITS, NOISY, LABELS, loss).drop.value
    loss.direction = "lower"  # type: ignore[attr-defined]
    down = compared(LOGITS, NOISY, LABELS, loss).drop.value
    assert up == pytest.approx(-down)  # type: ignore[operator]
    assert up != 0


def test_an_own_function_sees_all_outputs_by_name_where_there_are_several() -> None:
    def agree(outputs: dict[str, np.ndarray], labels: None) -> np.ndarray:
        assert labels is None
        return outputs["a"].argmax(1) == outputs["b"].argmax(1)

    found = compared({"a": LOGITS, "b": LOGITS}, {"a": LOGITS, "b": NOISY}, None, agree)
    assert found.drop.value == pytest.approx((LOGITS.argmax(1) != NOISY.argmax(1)).mean())


def test_an_own_function_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import numpy as np\ndef score(outputs, labels):\n    return outputs.argmax(1) == labels\n")
    found = compared(LOGITS, NOISY, LABELS, f"{tmp_path}/mine.py:score")
    assert found.drop.interval == compared(LOGITS, NOISY, LABELS, "accuracy").drop.interval
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(Refused, match="ZeroDivisionError"):
        compared(LOGITS, NOISY, LABELS, f"{tmp_path}/bad.py:score")


@pytest.mark.parametrize(("result", "message"), [
    (lambda o, y: np.zeros(7), r"gave \[7\]"),
    (lambda o, y: o, r"\[90, 3\]"),
    (lambda o, y: np.nan, "NaN"),
    (lambda o, y: "good", "ValueError"),
    (lambda o, y: 1 / 0, "your function raised ZeroDivisionError"),
])
def test_an_own_function_that_fails_is_said(result: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        compared(LOGITS, NOISY, LABELS, result)


def test_the_page_names_every_metric(root: Path) -> None:
    page = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    with pytest.raises(Refused) as refusal:
        find_metric("?")
    names = refusal.value.found.removeprefix("there are ").split(", ")
    assert len(names) == 10
    assert [name for name in names if f"`{name.split(' ')[0]}`" not in page] == []
