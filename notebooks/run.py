"""Execute the notebooks, each in a new kernel, and write them with their outputs.

    python notebooks/run.py            all, in place: how the committed outputs are made
    python notebooks/run.py 03 05      some of them
    python notebooks/run.py --out DIR --solutions --epochs 1 03
                                       into DIR, with the solutions of exercises, and one
                                       epoch of every training: do all cells still run?
    python notebooks/run.py --student DIR
                                       into DIR, without the folded solutions: to hand out,
                                       or to give to `nbgrader generate_assignment`

An exercise to derive is an empty function, a solution cell of nbgrader. To execute, its
folded solution takes its place, and is taken out again before the notebook is written.
A cell that draws says what is seen, in a comment "# alt: ..." at its end. It becomes the
text that a page has for those who do not see the picture.
ENN_FULL=1 in the environment runs them at full size; without it they see no data set but
the bundled digits. What is written depends on the cells and the stored results alone: ids
by position, no times, no versions. The links at the end come from the files that are here.
Badges for Colab and Binder, and the cell that installs the package there, appear once
pyproject.toml names a Repository under [project.urls].
"""

import argparse
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
BLAS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
SECONDS = 1800  # for one cell, at full size
WIDGET = "application/vnd.jupyter.widget-view+json"
FEW = """from enn_np.train import Training
def run(self, whole=Training.run):
    self.epochs = min(self.epochs, {})
    return whole(self)
Training.run = run"""  # what a kernel does before its first cell, where --epochs is given
FOLDED = re.compile(
    r"<details>\n<summary>Solution</summary>\n(.*?)</details>\n*", re.DOTALL
)
ALT = re.compile(r"^# alt: (.+(?:\n# .+)*)", re.MULTILINE)
MANAGED = ("badges", "install", "links")  # cells that this file writes, known by their id


def notebooks():
    """The numbered notebooks in reading order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


def title(path):
    """The first heading of a notebook."""
    first = next(
        cell.source for cell in nbformat.read(path, 4).cells if cell.source.startswith("# ")
    )
    return first.splitlines()[0].removeprefix("# ")


def solutions(nb):
    """The code in the folded solutions of the exercises."""
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    return re.findall(r"```python\n(.*?)```", "".join(FOLDED.findall(text)), re.DOTALL)


def solved(nb):
    """{position: solution} of the empty functions; a solution begins with the same line."""
    known = {code.split("\n", 1)[0]: code.rstrip() for code in solutions(nb)}
    return {
        i: known[cell.source.split("\n", 1)[0]]
        for i, cell in enumerate(nb.cells)
        if cell.metadata.get("nbgrader", {}).get("solution")
    }


def put(nb, sources):
    """Sources of cells, by their position."""
    for i, source in sources.items():
        nb.cells[i].source = source


def hand_out(nb):
    """Take the folded solutions out, those of the questions too."""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = FOLDED.sub("", cell.source).rstrip()


def repository():
    """The project on GitHub as "owner/name", or None where pyproject.toml names none."""
    text = (FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(
        r'^Repository = "https://github\.com/([\w.-]+/[\w.-]+?)/?"', text, re.MULTILINE
    )
    return found and found[1]


def frame(nb, path, where):
    """Write the cells that all share: badges and installation on top, links at the end."""
    cells = [cell for cell in nb.cells if cell.id not in MANAGED]
    if where:
        site = f"{where}/blob/HEAD/notebooks/{path.name}"
        badges = (
            f"[![Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"(https://colab.research.google.com/github/{site}) "
            f"[![Binder](https://mybinder.org/badge_logo.svg)]"
            f"(https://mybinder.org/v2/gh/{where}/HEAD?labpath=notebooks/{path.name})"
        )
        install = (  # with the repository, because the stored results are in it
            "try:\n    import enn_np\nexcept ModuleNotFoundError:  # on Colab or Binder\n"
            f"    !git clone --quiet --depth 1 https://github.com/{where} clone\n"
            "    %pip install --quiet ./clone\n"
            "    %cd -q clone/notebooks"
        )
        cells.insert(1, nbformat.v4.new_markdown_cell(badges, id="badges"))
        cells.insert(2, nbformat.v4.new_code_cell(install, id="install"))
    order = notebooks()
    at = order.index(path)
    links = ["[All notebooks](README.md)"]
    if at > 0:
        links.insert(0, f"Previous: [{title(order[at - 1])}]({order[at - 1].name})")
    if at + 1 < len(order):
        links.append(f"Next: [{title(order[at + 1])}]({order[at + 1].name})")
    cells.append(nbformat.v4.new_markdown_cell("---\n" + " · ".join(links), id="links"))
    nb.cells = cells


def execute(nb, epochs=None):
    """Run all cells in a new kernel, in the notebooks' folder, on one BLAS thread.

    epochs: None, or at most so many of every training.
    """
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ |= dict.fromkeys(BLAS, "1") | {
        "TQDM_DISABLE": "1"
    }  # a bar lives in a running kernel only
    if os.environ.get("ENN_FULL") != "1":  # what lies about must not change the outputs
        os.environ["ENN_DATA"] = str(FOLDER)  # a folder without data sets
    asked = ["--log-level=ERROR"]  # not of the kernel's port, which is local
    asked += [f"--IPKernelApp.exec_lines={FEW.format(epochs)}"] if epochs else []
    NotebookClient(
        nb,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        timeout=SECONDS,
        record_timing=False,
        extra_arguments=asked,
    ).execute()


def strip(nb):
    """Leave of a notebook what its cells decide, and what nbgrader must know."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nb.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for i, cell in enumerate(nb.cells):
        cell.id = cell.id if cell.id in MANAGED else f"cell-{i:02}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "nbgrader"}
        if "outputs" in cell:
            cell.outputs = _joined(each for each in cell.outputs if not _lives(each))
            told = ALT.search(cell.source)
            alt = {"image/png": {"alt": told[1].replace("\n# ", " ")}} if told else {}
            for output in cell.outputs:
                if "data" in output:
                    output.metadata = alt if "image/png" in output.data else {}


def _lives(output):
    """Whether it is a slider or a bar, which live in a running kernel only."""
    data = output.get("data", {})
    return WIDGET in data or data.get("text/plain", "").startswith("<function")


def _joined(outputs):
    """Printed text in one piece: where a kernel cuts it depends on the clock."""
    joined = []
    for output in outputs:
        if joined and "name" in output and output.name == joined[-1].get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", help="such as 03; all if none is given")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder to write to, in place if not given"
    )
    parser.add_argument(
        "--solutions",
        action="store_true",
        help="run the solutions of the questions as well",
    )
    parser.add_argument(
        "--student",
        type=Path,
        metavar="DIR",
        help="write to DIR without solutions, and run nothing",
    )
    parser.add_argument("--epochs", type=int, help="of every training, at most")
    given = parser.parse_args(arguments)
    paths = [
        path for path in notebooks() if not given.numbers or path.name[:2] in given.numbers
    ]
    if not paths:
        known = [path.name[:2] for path in notebooks()]
        parser.error(f"numbers: expected some of {known}, got {given.numbers}")
    where = repository()
    for path in paths:
        nb = nbformat.read(path, 4)
        frame(nb, path, where)
        if given.student:
            hand_out(nb)
            given.student.mkdir(parents=True, exist_ok=True)
            nbformat.write(nb, given.student / path.name)
            continue
        filled = solved(nb)
        empty = {i: nb.cells[i].source for i in filled}
        if given.solutions:
            more = [code for code in solutions(nb) if code.rstrip() not in filled.values()]
            nb.cells += [nbformat.v4.new_code_cell(code) for code in more]
        put(nb, filled)
        execute(nb, given.epochs)
        put(nb, empty)
        strip(nb)
        nbformat.write(nb, given.out / path.name)
        print(path.name, file=sys.stderr)


if __name__ == "__main__":
    main()
