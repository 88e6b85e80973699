"""The notebook is a walk over the package: it defines nothing of its own and keeps no outputs. `make notebook` executes it."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_thin_and_come_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    lines = "".join(line for cell in code for line in (*cell["source"], "\n") if not line.startswith("!"))
    defined = [n for n in ast.walk(ast.parse(lines)) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    assert not defined, "what a notebook needs belongs into the package"


def test_there_is_one():
    assert NOTEBOOKS
