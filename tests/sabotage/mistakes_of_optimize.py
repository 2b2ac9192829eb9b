"""Deliberate mistakes in what decides, measures and tells: what to replace in which file, and the tests that must notice."""

from __future__ import annotations

from tests.sabotage.mistakes import Mistake

CHOOSE, GATES, SEARCH, WORDS, BLAME, LAYERS, MODELS = (
    f"compress/test_optimize_{name}.py" for name in ("choose", "gates", "search", "words", "blame", "layers", "models")
)
COMPARE, MEASURE, EXPORT, ESTIMATE, RUNTIME = (
    f"compress/test_{name}.py" for name in ("compare", "measure", "export", "estimate", "runtime")
)
_CHOOSE, _GATES, _SEARCH, _WORDS, _BLAME, _LAYERS, _KERNELS, _BENCH, _TRIALS, _PLACE, _QUESTION, _SEARCHING, _RUN = (
    f"compress/optimize/{name}.py"
    for name in (
        "choose", "gates", "search", "words", "blame", "layers", "kernels", "bench", "trials", "place", "question", "searching", "run",
    )
)

_OUTPUT_ERROR = "compress/evaluate/output_error.py"
WHOLE = "compress/test_optimize.py"

MISTAKES = (
    # -- question, searching
    Mistake(
        "what nobody could prove is tried",
        _QUESTION,
        "drop.interval.high <= gate.limit:",
        "drop.interval.high <= 1e9:",
        WHOLE,
        "could_prove",
    ),
    Mistake("losses are mended where there are none", _SEARCHING,
            '            return "not needed: an integer model keeps the drop"\n        if not any(',
            "            pass\n        if not any(", WHOLE, "end_early"),
    Mistake("files are made smaller though time counts", _SEARCHING, "integer_passed=passed", "integer_passed=False", WHOLE, "end_early"),
    # -- search
    Mistake("ranges of the start are forgotten", _SEARCH, "start.base.options, behind)", "Outline().options, behind)", SEARCH,
            "corrections_stand"),
    Mistake("the layers of most bits are learned", _SEARCH, "least = min(bits)", "least = max(bits)", SEARCH, "fewest_bits"),
    # -- choose
    Mistake(
        "a few per cent are a difference whatever the intervals say",
        _CHOOSE,
        "and mine.interval.low <= other.interval.high",
        "and mine.interval.low < 0",
        CHOOSE,
        "overlap",
    ),
    Mistake(
        "files of any size are one set of kernels",
        _CHOOSE,
        "abs(size - least) <= SAME_SIZE * least and",
        "True and",
        CHOOSE,
        "overlap",
    ),
    Mistake(
        "a winner that failed its gates",
        _CHOOSE,
        "if trial.passed and trial.name != original and",
        "if trial.name != original and",
        CHOOSE,
        "never_wins",
    ),
    Mistake("the original wins", _CHOOSE, "if trial.passed and trial.name != original and", "if trial.passed and", CHOOSE, "nothing_wins"),
    Mistake("ties are not looked for", _CHOOSE, "<= best * (1 + EQUAL)]", "<= best]", CHOOSE, "much_smaller"),
    Mistake("the largest file wins a tie", _CHOOSE, '(GOALS[goal], "size_bytes") if', "(GOALS[goal],) if", CHOOSE, "much_smaller"),
    Mistake(
        "the greater drop wins",
        _CHOOSE,
        'key=lambda trial: _or_last(trial.value("drop")))',
        'key=lambda trial: -_or_last(trial.value("drop")))',
        CHOOSE,
        "more_accurate",
    ),
    Mistake("the farthest is called closest", _CHOOSE, "return min(refused,", "return max(refused,", CHOOSE, "least_excess"),
    Mistake(
        "a missing value is zero on the front",
        _CHOOSE,
        "axes = [name for name in _AXES if measured and all(",
        "axes = [name for name in _AXES if measured and any(",
        CHOOSE,
        "lacks",
    ),
    Mistake(
        "old marks stay on the front",
        _CHOOSE,
        "on_front=trial.name in best)",
        "on_front=trial.on_front or trial.name in best)",
        CHOOSE,
        "old_mark",
    ),
    # -- gates
    Mistake(
        "the drop need not be proven",
        _GATES,
        'found = [Gate("drop", drop, reason=asked)',
        'found = [Gate("drop", drop, proven=False, reason=asked)',
        GATES,
        "proven",
    ),
    Mistake("twice as slow is not slower", _GATES, "return Gate(name, 1.0, reason", "return Gate(name, 2.0, reason", GATES, "worse"),
    Mistake("the file may grow", _GATES, 'if goal != "size":', 'if goal == "size":', GATES, "worse"),
    Mistake(
        "storage is not asked",
        _GATES,
        '("size_bytes", target.storage_bytes,',
        '("size_bytes", None and target.storage_bytes,',
        GATES,
        "own_limits",
    ),
    Mistake("limits below zero are taken", _GATES, "and not value >= 0:", "and value > 1e300:", GATES, "nothing_can_meet"),
    Mistake(
        "a limit of zero is no limit",
        _GATES,
        "drop = limits.max_drop if limits.max_drop is not None else default_drop",
        "drop = limits.max_drop or default_drop",
        GATES,
        "limit_of_zero or every_limit",
    ),
    # -- search
    Mistake(
        "dynamic for products without weights",
        _SEARCH,
        "if layer.op == op and layer.weight_shape)",
        "if layer.op == op)",
        SEARCH,
        "without_weights",
    ),
    Mistake("a slow table is not read", _SEARCH, "if after > sum(work.values()) else", "if after > 1e300 else", SEARCH, "become_slower"),
    # -- words
    Mistake("speed upside down", _WORDS, 'return f"{1 / ratio:.2f}x', 'return f"{ratio:.2f}x', WORDS, "figures"),
    Mistake(
        "an estimate is told as measured",
        _WORDS,
        'kind = " (estimated)" if trial.measurements["latency_ratio"].source == "estimated" else ""',
        'kind = ""',
        WORDS,
        "estimate",
    ),
    Mistake(
        "the limit of the drop is not told",
        _WORDS,
        'high = f" (at most {drop.interval.high:.4f})"',
        'high = f" (at least {drop.interval.low:.4f})"',
        WORDS,
        "figures",
    ),
    Mistake(
        "NaN in the progress",
        _WORDS,
        "if drop is not None and math.isfinite(drop) else []",
        "if drop is not None else []",
        WORDS,
        "do_not_reach",
    ),
    # -- blame
    Mistake(
        "the error is not squared",
        _OUTPUT_ERROR,
        "float(((found - reference) ** 2).sum())",
        "float(abs(found - reference).sum())",
        BLAME,
        "square_of",
    ),
    Mistake(
        "NaN is no damage",
        _OUTPUT_ERROR,
        'if not np.isfinite(error):\n        return float("inf")',
        "if not np.isfinite(error):\n        return 0.0",
        BLAME,
        "broken_output",
    ),
    Mistake(
        "the least harmful come first",
        _BLAME,
        "if found[name] > 0), key=lambda name: -found[name])",
        "if found[name] > 0), key=lambda name: found[name])",
        BLAME,
        "worst_come_first",
    ),
    Mistake(
        "decibels of an amplitude", _BLAME, "{10 * np.log10(error):.1f} dB", "{20 * np.log10(error):.1f} dB", BLAME, "worst_come_first"
    ),
    Mistake(
        "all layers quantised for each",
        _BLAME,
        "Work(used, {name: options}, target, some)",
        "Work(used, dict.fromkeys(weighted, options), target, some)",
        BLAME,
        "enormous or alone_does",
    ),
    # -- layers and kernels
    Mistake(
        "amplitudes in decibels of power",
        _LAYERS,
        "10 * float(np.log10(signal[layer] / noise[layer]))",
        "5 * float(np.log10(signal[layer] / noise[layer]))",
        LAYERS,
        "less_bits",
    ),
    Mistake(
        "noise and signal exchanged",
        _LAYERS,
        "np.log10(signal[layer] / noise[layer])",
        "np.log10(noise[layer] / signal[layer])",
        LAYERS,
        "less_bits",
    ),
    Mistake(
        "times exchanged",
        _LAYERS,
        "times[0].get(name), times[1].get(name),",
        "times[1].get(name), times[0].get(name),",
        LAYERS,
        "table_holds",
    ),
    Mistake("kernels in another layout have no owner", _KERNELS, r"(_nchwc|_token", r"(_nothing|_token", LAYERS, "every_layer or known_by"),
    Mistake(
        "the last kernel of a layer counts alone",
        _KERNELS,
        "found[name] = found.get(name, 0.0) + kernel.mean_us",
        "found[name] = kernel.mean_us",
        LAYERS,
        "known_by",
    ),
    Mistake("slow models are timed a hundred times", _KERNELS, "if fitting <= FIRST_REPEATS:", "if fitting < 0:", LAYERS, "less_often"),
    # -- bench, trials, run
    Mistake("external weights weigh nothing", _BENCH, "disk_size(files_of(model, path))", "disk_size([path])", MODELS, "another_file"),
    Mistake(
        "a metric is known by its name",
        _TRIALS,
        "known = marshal.dumps(code) + pickle.dumps((function.__defaults__, function.__kwdefaults__, inside))",
        'known = b""',
        MODELS,
        "key_of_a_metric",
    ),
    Mistake(
        "paths relative to the trials",
        _TRIALS,
        'path=f"{self.folder.name}/{place.name}/artifact/{MODEL_NAME}"',
        'path=f"{place.name}/artifact/{MODEL_NAME}"',
        MODELS,
        "relative_paths",
    ),
    Mistake("a damaged artifact is kept", _TRIALS, '        load(place / "artifact")\n', "", MODELS, "damaged"),
    Mistake(
        "an earlier original is taken for this one",
        _RUN,
        "    if given is None:  #",
        "    if given is None and not path.is_file():  #",
        MODELS,
        "earlier_one",
    ),
    Mistake("others' files are replaced", _PLACE, 'if (out / "best").exists() and not', "if False and not", MODELS, "not_touched"),
    Mistake("two at once", _PLACE, "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_UN", MODELS, "one_folder"),
    Mistake("blame for what nobody complained of", _RUN, 'if "drop" in failed and integer', "if integer", MODELS, "complained"),
    # -- compare, measure, export, estimate, runtime
    Mistake(
        "the candidate beside itself",
        "compress/compare.py",
        "for model in (first, second))\n    chosen",
        "for model in (second, second))\n    chosen",
        COMPARE,
        "paired",
    ),
    Mistake(
        "the candidate is the parent",
        "compress/compare.py",
        'return found["parent"], found["candidate"]',
        'return found["candidate"], found["parent"]',
        COMPARE,
        "plausible",
    ),
    Mistake(
        "other inputs are compared",
        "compress/compare.py",
        "if sorted(names[0]) != sorted(names[1]):",
        "if len(names[0]) != len(names[1]):",
        COMPARE,
        "other_inputs",
    ),
    Mistake(
        "files beside the model are left out",
        "compress/measure.py",
        "weight_bytes=found.weight_bytes, files=beside)",
        "weight_bytes=found.weight_bytes)",
        MEASURE,
        "other_files",
    ),
    Mistake(
        "one sample of a fixed batch is counted",
        "compress/measure.py",
        "input_shapes=shapes",
        "input_shapes={name: (1, *s[1:]) for name, s in (shapes or {}).items()}",
        MEASURE,
        "roofline",
    ),
    Mistake(
        "all products are float32",
        "compress/measure.py",
        'dtype = layer.weight_dtype or "float32"',
        'dtype = "float32"',
        MEASURE,
        "products",
    ),
    Mistake(
        "an artifact is annotated on its way out",
        "compress/export.py",
        "graph.slimmed() if graph.artifact_id else graph",
        "graph",
        EXPORT,
        "very_bytes",
    ),
    Mistake("any ending will do", "compress/export.py", 'if place.suffix != ".onnx":', "if False:", EXPORT, "ending"),
    Mistake(
        "speeds multiply time",
        "compress/estimate.py",
        "new += (layer.macs or 0) / (found or 1.0)",
        "new += (layer.macs or 0) * (found or 1.0)",
        ESTIMATE,
        "share_of_each",
    ),
    Mistake(
        "reading takes no time",
        "compress/estimate.py",
        "seconds += max((layer.macs or 0)",
        "seconds += min((layer.macs or 0)",
        ESTIMATE,
        "milliseconds",
    ),
    Mistake(
        "a rate of zero divides",
        "compress/estimate.py",
        '(rates.get(kind) or rates["float32"])',
        'rates.get(kind, rates["float32"])',
        ESTIMATE,
        "unknown_rate",
    ),
    Mistake(
        "a short batch is fed as it is",
        "compress/runtime.py",
        "yield (_filled(feeds, data.names, batch) if model.fixed_batch else feeds), size",
        "yield feeds, size",
        RUNTIME,
        "filled_up",
    ),
    Mistake(
        "inner tensors are all floats",
        "compress/runtime.py",
        "            graph.outputs.append(value)\n",
        "            value.dtype = value.dtype or __import__('onnx_ir').DataType.FLOAT\n            graph.outputs.append(value)\n",
        RUNTIME,
        "any_type",
    ),
    Mistake(
        "batches as large as they come",
        "compress/runtime.py",
        "np.clip((BATCH_BYTES if at_most is None else at_most) // max(sample_bytes, 1), 1,",
        "np.clip(10**9, 1,",
        RUNTIME,
        "within_memory",
    ),
    Mistake(
        "a batch that is called free is believed",
        "compress/runtime.py",
        "            return predict(lambda feeds: run(session, feeds), data, batch_size=1)\n",
        "            raise\n",
        RUNTIME,
        "file_calls or batch_elsewhere",
    ),
)
