"""A process that has imported the large libraries already and forks for each run of pytest: starting cold takes longer than most runs.

It knows nothing of Whet, which each child imports from the copy that it is told. One line of JSON in, one out.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

LARGE = ("numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "scipy.stats", "scipy.optimize", "hypothesis", "pytest", "safetensors.torch",
         "click", "rich.console", "jinja2", "transformers", "transformers.models.llama.modeling_llama", "tokenizers", "gguf",
         "sklearn.datasets")  # fmt: skip


class WarmProcess:
    """Runs pytest in children that begin with the large libraries in memory."""

    def __init__(self, root: Path) -> None:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen([sys.executable, __file__], cwd=root, env=environment, text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)  # fmt: skip

    def run(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        """pytest with these arguments; returncode, stdout (stderr is in it)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        code, output = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, output, "")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Answer until there is nothing more to read."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not get among the answers
    os.dup2(2, 1)
    for name in LARGE:
        with suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        answers.write(json.dumps(_forked(json.loads(line))) + "\n")
        answers.flush()


def _forked(arguments: list[str]) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os._exit(_child(arguments, output))
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def _child(arguments: list[str], output: Any) -> int:
    import pytest

    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    told = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), write_through=True)
    with told, redirect_stdout(told), redirect_stderr(told):
        return int(pytest.main(arguments))


if __name__ == "__main__":
    serve()
