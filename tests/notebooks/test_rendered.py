"""The rendered notebooks of the repository are those of the scripts: their cells, executed to the end, no path of a machine."""

from __future__ import annotations

import re

import jupytext
import nbformat
import pytest

from tests.notebooks.running import NOTEBOOKS

SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))
AGAIN = "render it again: make run notebooks NOTEBOOKS_TO=notebooks/rendered"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_rendered_notebook_has_the_cells_of_its_script_and_their_outputs(script):
    rendered = nbformat.read(NOTEBOOKS / "rendered" / f"{script.stem}.ipynb", as_version=4)
    wanted = [(cell.cell_type, cell.source) for cell in jupytext.read(script).cells]
    assert [(cell.cell_type, cell.source) for cell in rendered.cells] == wanted, AGAIN
    outputs = [output for cell in rendered.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"], AGAIN
    assert any("image/png" in output.get("data", {}) for output in outputs), AGAIN
    said = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not re.search(r"(^|[\\s\"'=])/(home|root|tmp|work|Users)/", "\n".join(said)), (
        "a path of this machine is shown"
    )


def test_no_rendered_notebook_is_left_of_a_script_that_is_gone():
    assert {path.stem for path in (NOTEBOOKS / "rendered").glob("*")} == {path.stem for path in SCRIPTS}
