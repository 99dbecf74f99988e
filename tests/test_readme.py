"""The pages prove themselves: examples run, tables are the stored results, links lead somewhere, the house is small."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from enn_np.lab import cli, pages
from enn_np.lab.pages import verify

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in (
        *("README.md", "data/results/README.md", "data/README.md", "CONTRIBUTING.md"),
        *("notebooks/README.md", "notebooks/TEACHING.md"),
    )
}
README, TABLES = PAGES["README.md"], PAGES["data/results/README.md"]

# What the house may weigh: a change that needs more raises a number here, in a commit of its own, and says why.
LIMITS = {
    "core lines": 1_000,  # non-blank, of CORE and all that it imports, transitively
    "package lines": 7_525,  # non-blank, of every text file under enn_np/
    "longest file": 360,  # non-blank
    "flat files": 18,  # Python files directly in enn_np/
    "README lines": 160,
    "README words": 2_000,
}
CORE = ("cells", "engram", "bptt", "ops", "gradcheck", "optim", "losses")
TEXT = {".py", ".html", ".css", ".js", ".jinja", ".j2", ".txt", ".md"}
PACKAGE = ROOT / "enn_np"


# ---------------------------------------------------------------------------------------------------------- the pages


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_every_example_runs_as_it_stands(example, capsys):
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_two_commands_each_on_one_line():
    """The first two `bash` fences are pasteable lines: the demo, then the tests (which CI takes from here)."""
    fences = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert [command.count("\n") for command in fences[:2]] == [1, 1]
    assert "enn_np demo" in fences[0] and "pytest" in fences[1]


def test_tables_are_the_stored_results():
    """All of both pages, and so the verdicts; what others quote; where later results are from."""
    assert verify([ROOT / "README.md", RESULTS / "README.md"], RESULTS) == []


def test_generated_tables_are_on_the_page_of_results_but_for_the_verdicts():
    marks = [re.findall(r"<!-- (\w[\w:-]*) -->", page) for page in (README, TABLES)]
    assert marks[0] == ["verdicts"] and len(marks[1]) == len(set(marks[1])) > 30


@pytest.mark.parametrize(
    "marks", ("{0}a{0}", "{1}a{0}", "{0}a", "{0}{1}{1}", "{0}<!-- verdicts -->{1}<!-- /verdicts -->")
)
def test_marks_that_are_no_pairs_are_refused(marks, tmp_path):
    """A page that is left as it was, and that `verify` calls right."""
    page = tmp_path / "page.md"
    page.write_text(marks.format("<!-- files -->", "<!-- /files -->"))
    with pytest.raises(ValueError, match=r"^page: .*page.md: <!-- (files|verdicts) -->: expected"):
        verify([page], RESULTS)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The pages, what they are made of, and what quotes them."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "notebooks", clone / "notebooks")
    shutil.copytree(RESULTS, clone / "data" / "results", ignore=shutil.ignore_patterns("runs", "*.png", "*.svg"))
    shutil.copy(ROOT / "README.md", clone)
    return clone


@pytest.mark.parametrize(
    ("file", "after", "says"),
    [
        ("README.md", r"recall is sparse \| refuted \| ", "here:      | recall is sparse"),
        ("README.md", r"recall is sparse.*half \| ", "here:      | recall is sparse"),
        ("README.md", "each sample, is right ", "README.md: no paragraph has 24.1%"),
        ("notebooks/09_cifar10.ipynb", r"The published (?=\d)", "09_cifar10.ipynb: no paragraph has 46.8%"),
        ("data/results/README.md", r"\| GRU \| 0 to 4 \| \*\*", "here:      | GRU | 0 to 4"),
        ("data/results/README.md", r"\| mnist/paper \| ", "here:      | mnist/paper"),
        ("data/results/README.md", r"GRU and LSTM are not separable:\s*", "5 seeds). Every Engram run"),
        ("data/results/README.md", r"\| ANOVA, accuracy \| F = ", "the files: | ANOVA, accuracy | F = 83.33"),
        ("data/results/mnist-paper-gru-3.json", '"test_accuracy": ', "data/results/README.md, line"),
        ("data/results/mnist-ablation-full-0.json", '"effective_slots": ', "the files: | mnist/ablation"),
        ("data/results/rates/mnist-sound-gru-0.001.json", r'"val_loss": \[\s*', "the files: | rates"),
        ("data/results/bench/cpu.json", '"ours_ms": ', "the files: | bench"),
        ("data/results/pixels14-sound-binding-0.json", '"revision(?=": )', "lacks a revision; run it again"),
    ],
)
def test_a_changed_digit_makes_verify_fail(clone, monkeypatch, capsys, file, after, says):
    """The last digit of the first number after what is named; or its name, where that has none."""
    monkeypatch.chdir(clone)
    path = Path(file)
    good = path.read_bytes()
    where = re.search(after.encode() + rb"(?:-?[\d.]*(\d))?", good)
    changed = b"%d" % ((int(where[1]) + 1) % 10) if where[1] else b"_"
    start = where.start(1) if where[1] else where.end()
    path.write_bytes(good[:start] + changed + good[start + bool(where[1]) :])
    try:
        assert cli.main(["verify"]) == 1
        assert says in capsys.readouterr().out
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize(("figure", "right"), (("1.2", ()), ("12", ()), ("345", ()), ("1,234", (0,)), ("-1.2", (1, 2))))
def test_figures_are_quoted_whole(tmp_path, figure, right):
    """12 stood in "12,345 s", and 1.2 in "a change of -1.2"."""
    texts = ("1,234 s and 12,345 s", "a change of -1.2", "from -1.2 to -1.1", "21,234 s", "of −1.2 and of 11.2")
    for i, text in enumerate(texts):
        (tmp_path / "quoting.md").write_text(text, encoding="utf-8")
        page = f"# Quoted elsewhere\n| [that](quoting.md) | {figure} |\n"
        assert (pages.misquoted(tmp_path / "page.md", page) == []) == (i in right), text


def test_verify_passes_on_what_is_committed(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    assert cli.main(["verify"]) == 0
    assert "every table and number is what the files say" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page]):
        path, _, heading = target.partition("#")
        path = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert path.exists(), target
        assert not heading or heading in _anchors(path), target


def _anchors(path):
    """The headings of a Markdown page or a notebook as links name them."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    if path.suffix == ".ipynb":
        return {heading.replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ----------------------------------------------------------------------------------------------------------- the house


def test_the_house_stays_small():
    files = [path for path in PACKAGE.rglob("*") if path.suffix in TEXT and "__pycache__" not in path.parts]
    sizes = {
        "core lines": sum(map(_lines, _core())),
        "package lines": sum(map(_lines, files)),
        "longest file": max(_lines(path) for path in files if path.suffix == ".py"),
        "flat files": len(list(PACKAGE.glob("*.py"))),
        "README lines": len(README.splitlines()),
        "README words": len(README.split()),
    }
    assert {name: size for name, size in sizes.items() if size > LIMITS[name]} == {}


def test_no_circle_among_imports():
    """Imports within functions count, too. Whoever reads a file has then read all that it stands on."""
    arrows = {path: set(_imported(path)) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}
    while free := {path for path, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {path: targets for path, targets in arrows.items() if path not in free}
    assert arrows == {}


def _lines(path):
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())


def _core():
    """The files of CORE and all that they import, transitively."""
    todo, found = [path for name in CORE if (path := _module([name]))], set()
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += _imported(path)
    return found


def _imported(path):
    """The package's files that a file imports, at its top or within a function."""
    here = list(path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names, parts = [alias.name for alias in node.names], (node.module or "").split(".")
            if node.level:
                base = here[: len(here) - node.level + 1] + [part for part in parts if part]
            elif parts[0] == "enn_np":
                base = parts[1:]
            else:
                continue
            found = [_module(base), *(_module([*base, name]) for name in names)]
        elif isinstance(node, ast.Import):
            found = [_module(name.split(".")[1:]) for name in (a.name for a in node.names) if name[:7] == "enn_np."]
        else:
            continue
        yield from (target for target in found if target and target.name != "__init__.py")


def _module(parts):
    """The file of a module of the package, or None; a package's is its __init__."""
    path = PACKAGE.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)
