"""The notebooks run from a clean kernel, what is committed is complete, and together they say all that they promise.

The same checks hold for a committed notebook and for one that was executed just now: `faults` names what is wrong.
"""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from enn_np import Engram
from enn_np.lab.pages import table

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@functools.cache
def text(path):
    """All that a notebook says beside its code."""
    return "\n\n".join(source(cell) for cell in cells(path, "markdown"))


def faults(notebook):
    """What a reader would stumble over in a notebook (a dict), as a list of sentences."""
    found, code = [], [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"execution counts are {counts}")
    for cell in code:
        lines = source(cell).splitlines()
        if len(lines) > 25:
            found.append(f"a cell of {len(lines)} lines: {lines[0]}")
        for output in cell["outputs"]:
            if output["output_type"] == "error" or output.get("name") == "stderr":
                found.append(f"{output['output_type']}: {output.get('evalue') or output.get('text')}")
            given = output.get("metadata", {})
            if set(given) - {"image/png"} or set(given.get("image/png", {})) - {"alt"}:
                found.append(f"metadata of an output: {given}")
    more = {key for cell in notebook["cells"] for key in cell["metadata"]} - {"nbgrader"}
    if set(notebook["metadata"]) != {"kernelspec", "language_info"} or more:
        found.append("metadata: write the notebook by `python notebooks/run.py`")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_is_committed_is_complete_and_clean(path):
    assert faults(json.loads(path.read_text(encoding="utf-8"))) == []
    assert path.stat().st_size < 0.4e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_every_picture_has_words_for_those_who_do_not_see_it(path):
    """By `# alt: ...` in the cell that draws it: what an HTML page has as the picture's alternative text."""
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                alt = output["metadata"].get("image/png", {}).get("alt", "")
                assert len(alt) > 40 and f"alt: {alt}" in source(cell).replace("\n# ", " "), source(cell)


EPOCHS = {"09": 10, "10": 2}  # at most, of every training; 1 unless assertions are about what was learned


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_runs_from_a_clean_kernel_and_so_do_its_solutions(path, tmp_path):
    """All cells and all that they assert, with as few epochs as that allows."""
    pytest.importorskip("nbclient", reason="notebooks need jupyter: pip install -r requirements.txt")
    few = ["--solutions", "--epochs", str(EPOCHS.get(path.name[:2], 1))]
    command = [sys.executable, str(FOLDER / "run.py"), "--out", str(tmp_path), *few, path.name[:2]]
    environment = {name: value for name, value in os.environ.items() if name != "ENN_FULL"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert faults(json.loads((tmp_path / path.name).read_text(encoding="utf-8"))) == []


GOOD = {"kernelspec": {}, "language_info": {}}


def notebook(source="1 + 1", outputs=(), count=1, **metadata):
    cell = {"cell_type": "code", "source": source, "outputs": outputs, "execution_count": count, "metadata": {}}
    return {"cells": [cell], "metadata": GOOD | metadata}


@pytest.mark.parametrize(
    "broken, said",
    [
        (notebook(count=2), "execution counts"),
        (notebook(count=None), "execution counts"),
        (notebook(source="1\n" * 26), "26 lines"),
        (notebook(outputs=[{"output_type": "error", "evalue": "no"}]), "error: no"),
        (notebook(outputs=[{"output_type": "stream", "name": "stderr", "text": "careful"}]), "careful"),
        (notebook(outputs=[{"output_type": "display_data", "metadata": {"width": 3}}]), "metadata of an output"),
        (notebook(widgets={}), "metadata"),
    ],
)
def test_the_checks_find_what_they_are_for(broken, said):
    assert faults(notebook()) == []
    (fault,) = faults(broken)
    assert said in fault


CALL = re.compile(r'table\("(\w+)", "(\w+)", "(\w+)", RESULTS\)')
TABLES = [(path, *call) for path in NOTEBOOKS for cell in cells(path, "code") for call in CALL.findall(source(cell))]


@pytest.mark.parametrize("path, kind, a, b", TABLES, ids=[f"{path.stem}:{kind}:{a}:{b}" for path, kind, a, b in TABLES])
def test_tables_are_the_stored_results(path, kind, a, b):
    """As in the README. After new results: python notebooks/run.py with the number of the notebook."""
    call = f'table("{kind}", "{a}", "{b}", RESULTS)'
    (cell,) = [cell for cell in cells(path, "code") if call in source(cell)]
    (output,) = cell["outputs"]
    assert "".join(output["data"]["text/markdown"]) == table(kind, a, b, ROOT / "data" / "results")


def places(mark):
    return [path.name for path in NOTEBOOKS for _ in range(text(path).count(mark))]


@pytest.mark.parametrize("number", range(1, 10))
def test_every_equation_and_its_way_back_stand_in_one_place(number):
    assert len(places(rf"\tag{{{number}}}")) == 1
    assert len(places(rf"\tag{{{number}b}}")) == 1


@pytest.mark.parametrize("switch", [field.name for field in dataclasses.fields(Engram)])
def test_every_switch_of_the_cell_is_introduced_once(switch):
    """In bold; other places may use it."""
    assert len(places(f"**`{switch}`**")) == 1


@pytest.mark.parametrize("path", [*NOTEBOOKS, FOLDER / "README.md"], ids=[*NAMES, "README"])
def test_links_lead_somewhere(path):
    said = text(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", said):
        assert (FOLDER / target).exists(), target


def test_the_guide_has_goals_for_every_notebook_and_numbers_that_stand_there():
    guide = (FOLDER / "TEACHING.md").read_text(encoding="utf-8")
    parts = {part.split("\n")[0]: part for part in re.split(r"^##+ ", guide, flags=re.MULTILINE)}
    for path in NOTEBOOKS:
        part = parts[text(path).splitlines()[0].removeprefix("# ")]
        assert all(f"- **{word}** " in part for word in ("Can", "Sticks", "Ask")), path.name
    shown = "".join(path.read_text(encoding="utf-8") for path in [*NOTEBOOKS, ROOT / "README.md"])
    found = re.findall(r"\d+\.\d+(?=%)", guide)
    assert len(found) > 8 and [number for number in found if number not in shown] == []


def test_the_cheat_sheet_is_one_page_with_every_equation_and_nothing_overlaps(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import cheatsheet

    cheatsheet.main(["--out", str(tmp_path)])
    pdf, drawn = (tmp_path / "cheatsheet.pdf").read_bytes(), (tmp_path / "cheatsheet.svg").read_text(encoding="utf-8")
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 1
    for number in range(1, 10):
        assert drawn.count(f"<!-- ({number}) -->") == 2  # of Engram and of Binding
    committed = (FOLDER / "cheatsheet.pdf").read_bytes()
    made, stored = (re.search(rb"/Keywords \(\w+\)", each)[0] for each in (pdf, committed))
    assert made == stored, "the sheet has changed: python notebooks/cheatsheet.py"
    with matplotlib.rc_context(cheatsheet.SETTINGS):
        canvas = FigureCanvasAgg(cheatsheet.draw())
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in canvas.figure.texts]
    whole = canvas.figure.bbox
    assert all(box.x0 > 0 and box.y0 > 0 and box.x1 < whole.x1 and box.y1 < whole.y1 for box in boxes)
    across = [(one, other) for one, other in combinations(boxes, 2) if abs(one.y0 - other.y0) < whole.height / 200]
    assert len(across) > 50 and not any(one.x0 < other.x1 and other.x0 < one.x1 for one, other in across)


@pytest.mark.parametrize("i", range(len(NOTEBOOKS)), ids=NAMES)
def test_each_has_what_a_reader_expects_and_leads_to_the_next(i):
    path = NOTEBOOKS[i]
    said, last = text(path), source(cells(path, "markdown")[-1])
    assert said.startswith(f"# {path.name[:2]} ")
    assert "**What you will learn**" in said and "Reading time:" in said
    assert said.count("<details>") == said.count("</details>") >= 2
    assert i == 0 or f"({NOTEBOOKS[i - 1].name})" in last
    assert i + 1 == len(NOTEBOOKS) or f"({NOTEBOOKS[i + 1].name})" in last
    code = "\n".join(source(cell) for cell in cells(path, "code"))
    assert "assert " in code
    assert any("image/png" in output.get("data", {}) for cell in cells(path, "code") for output in cell["outputs"])


def test_the_map_names_every_notebook_once_with_its_reading_time():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        (line,) = [line for line in page.splitlines() if f"({path.name})" in line]
        (minutes,) = re.findall(r"Reading time: (\d+) minutes", text(path))
        assert re.search(rf"\b{minutes} min\b", line), line


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_each_makes_8_to_15_slides_without_what_is_to_derive(path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="notebooks need jupyter: pip install -r requirements.txt")
    monkeypatch.syspath_prepend(FOLDER)
    import run

    notebook = nbformat.read(path, 4)
    run.hand_out(notebook)
    run.cut(notebook)
    kinds = [cell.metadata.slideshow.slide_type for cell in notebook.cells]
    assert kinds[0] == "slide" and 8 <= kinds.count("slide") <= 15
    shown = [cell.source for cell, kind in zip(notebook.cells, kinds, strict=True) if kind != "skip"]
    assert not any("BEGIN SOLUTION" in source or "<summary>Solution" in source for source in shown)


def test_badges_come_with_a_public_address(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="notebooks need jupyter: pip install -r requirements.txt")
    monkeypatch.syspath_prepend(FOLDER)
    import run

    for path in NOTEBOOKS[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    notebook = nbformat.read(tmp_path / NOTEBOOKS[0].name, 4)
    run.frame(notebook, tmp_path / NOTEBOOKS[0].name, None)
    plain = [cell.id for cell in notebook.cells]
    run.frame(notebook, tmp_path / NOTEBOOKS[0].name, "someone/enn_np")
    run.frame(notebook, tmp_path / NOTEBOOKS[0].name, "someone/enn_np")  # twice: they are replaced, not added
    assert [cell.id for cell in notebook.cells] == [plain[0], "badges", "install", *plain[1:]]
    assert f"colab.research.google.com/github/someone/enn_np/blob/HEAD/notebooks/{NAMES[0]}" in notebook.cells[1].source
    assert "git clone --quiet --depth 1 https://github.com/someone/enn_np clone\n" in notebook.cells[2].source
    assert NOTEBOOKS[1].name in notebook.cells[-1].source
    run.frame(notebook, tmp_path / NOTEBOOKS[0].name, None)
    assert [cell.id for cell in notebook.cells] == plain
