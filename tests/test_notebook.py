"""The notebook is a walk over the package: it defines nothing of its own and keeps no outputs.

Here it is executed on six tracks and two steps; `make notebook` does the same, or more.
"""

import ast
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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


def test_the_walk_goes_from_a_corpus_to_pictures_and_audio(tmp_path, monkeypatch):
    for name, value in {"CD4MT_WORK": str(tmp_path), "CD4MT_TRACKS": "6", "CD4MT_STEPS": "2"}.items():
        monkeypatch.setenv(name, value)
    page = nbformat.read(ROOT / "notebooks" / "visualize_cd4mt.ipynb", as_version=4)
    NotebookClient(page, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()  # raises where a cell does
    outputs = [output for cell in page.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") >= 5, "each pair of comparisons, and the imputed stem's spectrograms"
    assert sum("<audio" in output.get("data", {}).get("text/html", "") for output in outputs) == 5
    assert "mean square error of the log-mel" in "".join(output.get("text", "") for output in outputs)
