"""Quality: a model's outputs on data, and two models compared on the same samples with an interval around the drop."""

from whet.compress.evaluate.compare import Comparison, compare_outputs
from whet.compress.evaluate.fidelity import DEFAULT_FIDELITY, fidelity_quantity
from whet.compress.evaluate.intervals import needed_samples
from whet.compress.evaluate.metrics import Metric, find_metric
from whet.compress.evaluate.predict import predict

__all__ = ["DEFAULT_FIDELITY", "Comparison", "Metric", "compare_outputs", "fidelity_quantity", "find_metric", "needed_samples", "predict"]
