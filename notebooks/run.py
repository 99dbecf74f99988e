"""Execute the notebooks, each in a new kernel, and write them with their outputs.

    python notebooks/run.py            all, in place: how the committed outputs are made
    python notebooks/run.py 03 05      some of them
    python notebooks/run.py --out DIR --solutions --epochs 1 03
                                       into DIR, with the solutions of exercises, and one
                                       epoch of every training: do all cells still run?
    python notebooks/run.py --student DIR
                                       into DIR, without the folded solutions: to hand out,
                                       or to give to `nbgrader generate_assignment`
    python notebooks/run.py --slides DIR 03
                                       into DIR, cut into 8 to 15 slides, for
                                       `jupyter nbconvert --to slides DIR/03*.ipynb`
    python notebooks/run.py --site DIR into DIR, a site to read, search and run online;
                                       needs `pip install -e '.[site]'`

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
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image  # which matplotlib needs

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


def cut(nb, fewest=8, most=15):
    """Slides, for nbconvert: one a heading, later text on a click. Where headings are few,
    such text begins slides, too. Imports, exercises to derive and links are left out."""
    imports = next(c for c in nb.cells if c.cell_type == "code" and c.id not in MANAGED)
    cells, kinds, hidden = [], [], False
    for cell in nb.cells:
        text = cell.cell_type == "markdown"
        for part in (
            re.split(r"^(?=## )", cell.source, flags=re.MULTILINE) if text else ["code"]
        ):
            if part:
                head = text and part.startswith("#")
                hidden = part.startswith("## Derive it") if head else hidden
                kind = "slide" if head else "fragment" if text else "-"
                skip = hidden or cell is imports or cell.id in MANAGED
                kinds.append("skip" if skip else kind)
                cells.append(nbformat.v4.new_markdown_cell(part) if text else cell)
    heads, more = (
        [i for i, k in enumerate(kinds) if k == x] for x in ("slide", "fragment")
    )
    short = sorted(heads, key=lambda i: len(cells[i].source))[:-most]
    kinds = ["fragment" if i in short else kind for i, kind in enumerate(kinds)]
    extra = more[: most - len(heads)] if len(heads) < fewest else []
    for i, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
        cell.metadata = {"slideshow": {"slide_type": "slide" if i in extra else kind}}
        if ALT.search(cell.source):  # the picture without the code that draws it
            cell.metadata["transient"] = {"remove_source": True}
    nb.cells = cells


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


def build_site(out):
    """A static site in `out`: pages by Sphinx, the live page, JupyterLite with the package.

    All is made from copies. Nothing is downloaded.
    """
    tools = ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline", "hatchling")
    for name in (*tools, "jupyterlite_core", "jupyterlite_pyodide_kernel"):
        if importlib.util.find_spec(name) is None:
            sys.exit(f"--site: {name} is not installed; run pip install -e '.[site]'")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        sys.exit(f"--site: expected a new or empty folder, got {out}; remove it first")
    with tempfile.TemporaryDirectory() as temporary:
        pages, html, lite = (Path(temporary, name) for name in ("pages", "html", "lite"))
        _copy_pages(pages)
        _python("sphinx", "--quiet", "--fail-on-warning", pages, html)
        shutil.copy(FOLDER / "live.html", html)
        _copy_to_run(lite / "contents")
        _python("hatchling", "build", "-t", "wheel", "-d", lite, cwd=FOLDER.parent)
        extensions = Path(sys.prefix, "share", "jupyter", "labextensions", "@jupyterlite")
        config = {
            "apps": ["lab"],
            "contents": ["contents"],
            "federated_extensions": [str(extensions / "pyodide-kernel-extension")],
            "ignore_sys_prefix": True,  # of the extensions the kernel alone
            "no_sourcemaps": True,
            "no_unused_shared_packages": True,
        }
        wheels = {"piplite_urls": [path.name for path in lite.glob("*.whl")]}
        config = json.dumps({"LiteBuildConfig": config, "PipliteAddon": wheels})
        (lite / "jupyter_lite_config.json").write_text(config, encoding="utf-8")
        _python("jupyterlite_core", "build", "--output-dir", html / "lite", cwd=lite)
        _slim(html)
        hidden = shutil.ignore_patterns(".doctrees", ".buildinfo*", "_sources")
        shutil.copytree(html, out, ignore=hidden, dirs_exist_ok=True)


def _python(*command, cwd=None):
    """Run a module; what it says is shown if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"--site: {command[0]} failed\n{done.stdout}{done.stderr}")


def _copy_pages(to):
    """What the site shows and links to; its own pages and conf.py at the top."""
    root = FOLDER.parent
    hidden = shutil.ignore_patterns("__pycache__", "site", "runs", ".*")
    shutil.copytree(FOLDER / "site", to)
    for name in ("enn_np", "data/results", "notebooks"):
        shutil.copytree(root / name, to / name, ignore=hidden)
    pages = (*root.glob("*.md"), *root.glob("data/*.md"))
    for path in (*pages, root / "LICENSE", root / "CITATION.cff"):
        shutil.copy(path, to / path.relative_to(root))
    for page in (*to.rglob("*.md"), *to.rglob("*.ipynb")):
        heading = r"(?:(?<=\.ipynb#)|(?<=]\(#))[^)\s]+"
        text = re.sub(heading, _slug, page.read_text(encoding="utf-8"))
        live = os.path.relpath(to / "live.html", page.parent)  # to open, not to download
        to_live = r"\[([^]]+)\]\([./]*(?:notebooks/)?live\.html\)"
        text = re.sub(to_live, rf"<a href='{live}'>\1</a>", text)
        for words, target in re.findall(r"\[([^]]+)\]\(([\w./]+)\)", text):
            if (page.parent / target).is_dir():  # which a site cannot show
                text = text.replace(f"[{words}]({target})", words)
        page.write_text(text, encoding="utf-8")
    for path in (to / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        nb, where = nbformat.read(path, 4), f"index.html?path=notebooks/{path.name}"
        link = f'<a href="../lite/lab/{where}">Run this notebook in the browser</a>'
        for cell in nb.cells:  # MyST-NB reads a picture's text here, not at the output
            for output in cell.get("outputs", []):
                if image := output.get("metadata", {}).get("image/png"):
                    cell.metadata["mystnb"] = {"image": image}
        nb.cells.insert(1, nbformat.v4.new_markdown_cell(link, id="lite"))
        nbformat.write(nb, path)


def _slug(heading):
    """Sphinx writes #why-the-leak where Jupyter writes #Why-the-leak?."""
    return re.sub(r"[^\w-]", "", heading[0].lower())


def _copy_to_run(to):
    """Notebooks without outputs, which install the package, and the results they read."""
    (to / "notebooks").mkdir(parents=True)
    (to / "data").mkdir()
    shutil.copy(FOLDER / "min_engram.py", to / "notebooks")
    install = (
        "# The package comes from this site; NumPy and the others from the network.\n"
        "import shutil\n\n%pip install -q enn_np\n"
        'shutil.unpack_archive("../data/results.zip", "../data/results")'
    )
    for path in notebooks():
        nb = nbformat.read(path, 4)
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        nb.cells.insert(1, nbformat.v4.new_code_cell(install, id="install"))
        nbformat.write(nb, to / "notebooks" / path.name)
    results = FOLDER.parent / "data" / "results"
    with zipfile.ZipFile(to / "data" / "results.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(results.rglob("*.json")):
            archive.write(path, path.relative_to(results))


def _slim(html):
    """Remove what no page uses, about 20 MB, and write pictures in 256 colours."""
    mathjax, fonts = html / "_static" / "mathjax", html / "lite" / "build"
    used = ("tex-chtml.js", "output/chtml/fonts/", "input/tex/extensions/")
    for path in mathjax.rglob("*.*"):
        if path.is_file() and not path.relative_to(mathjax).as_posix().startswith(used):
            path.unlink()
    for path in fonts.glob("fa-*"):
        if path.suffix in (".svg", ".eot", ".ttf"):  # for browsers of before 2014
            path.unlink()
    for path in (*(html / "_images").glob("*.png"), *(html / "_downloads").rglob("*.png")):
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


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
    copies = parser.add_mutually_exclusive_group()
    copies.add_argument(
        "--student",
        type=Path,
        metavar="DIR",
        help="write to DIR without solutions, and run nothing",
    )
    copies.add_argument(
        "--slides", type=Path, metavar="DIR", help="write to DIR as slides, and run nothing"
    )
    parser.add_argument("--epochs", type=int, help="of every training, at most")
    copies.add_argument(
        "--site", type=Path, metavar="DIR", help="write the site to DIR, and run nothing"
    )
    given = parser.parse_args(arguments)
    if given.site:
        return build_site(given.site.resolve())
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
        if out := given.slides or given.student:
            hand_out(nb)
            if given.slides:
                cut(nb)
            out.mkdir(parents=True, exist_ok=True)
            nbformat.write(nb, out / path.name)
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
