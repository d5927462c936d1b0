"""The notebook of the examples: a valid file without outputs, whose cells run one after the other
and draw while training goes on.
"""

import io
import json
import re
import sys
import types
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "laurel.ipynb"


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_the_notebook_is_one_and_holds_no_outputs(cells):
    """The format of version 4.5, by hand: no package for it is needed to run the cells."""
    whole = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5) and whole["metadata"][
        "kernelspec"
    ]["language"] == "python"
    names = [cell["id"] for cell in cells]
    assert len(set(names)) == len(names) and all(
        re.fullmatch(r"[\w-]{1,64}", name) for name in names
    )
    for cell in cells:
        wanted = {"cell_type", "id", "metadata", "source"} | (
            {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        )
        assert cell.keys() == wanted and all(isinstance(line, str) for line in cell["source"])
        assert (
            cell["cell_type"] in ("code", "markdown")
            and not cell.get("outputs")
            and cell.get("execution_count") is None
        )


def test_its_cells_run_and_draw_while_training_goes_on(cells, tmp_path, monkeypatch, capsys):
    """Every code cell in one namespace, in order. The front end is a stand-in that keeps what it is
    asked to show, as a picture.
    """
    shown, cleared = [], []
    front = types.ModuleType("IPython.display")

    def display(figure):
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        shown.append((picture.getvalue(), len(figure.axes[0].lines[0].get_xdata())))

    front.display, front.clear_output = display, lambda wait=False: cleared.append(wait)
    monkeypatch.setitem(sys.modules, "IPython.display", front)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    names = {"__name__": "__main__"}
    try:
        for cell in cells:
            if cell["cell_type"] == "code":
                exec(
                    compile("".join(cell["source"]), f"{NOTEBOOK.name}:{cell['id']}", "exec"), names
                )
    finally:
        matplotlib.use(before)
    said = capsys.readouterr().out
    assert (
        len(shown) >= 3
        and all(picture.startswith(b"\x89PNG") for picture, _ in shown)
        and all(cleared)
    )
    assert [points for _, points in shown] == sorted(points for _, points in shown) and shown[0][
        1
    ] == 3  # it grew
    run = names["run"]
    assert (
        run.facts["stopped"]["by"] == "__main__.LivePlot.on_step"
        and run.metrics()[0]["reward"] < 0.5
    )
    assert run.facts["best"]["value"] > 0.5 and run.config()["rewards"] == ["__main__.even"]
    assert "grpo-1 ended at step" in said and "Did you mean `reward_funcs`?" in said
