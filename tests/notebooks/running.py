"""Running a notebook as a reader would, and what it shows."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def run_notebook(script: Path, **parameters: object) -> nbformat.NotebookNode:
    """Execute a percent script with these values after its cell tagged `parameters`."""
    notebook = jupytext.read(script)
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, f"{script.name}: one cell tagged parameters required"
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(source))
    resources = {"metadata": {"path": str(script.parent)}}
    return NotebookClient(notebook, timeout=60, kernel_name="python3", resources=resources).execute()


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """Everything of a MIME type (or the printed text) that the cells show."""
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    if kind == "stream":
        return [output.text for output in shown if output.output_type == "stream" and output.name == "stdout"]
    return [output.data[kind] for output in shown if "data" in output and kind in output.data]
