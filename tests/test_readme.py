"""The pages prove themselves: examples run, tables are the stored results, links lead somewhere, the house is small."""

import ast
import json
import re
from pathlib import Path

import pytest

from enn_np.lab.pages import stored_traces, table
from enn_np.look import claims

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "data/results/README.md", "data/README.md", "notebooks/README.md", "CONTRIBUTING.md")
}
README, TABLES = PAGES["README.md"], PAGES["data/results/README.md"]
MARKS = re.findall(r"<!-- (\w+:\w+:\w+) -->", TABLES)  # such as results:mnist:paper

# What the house may weigh: a change that needs more raises a number here, in a commit of its own, and says why.
LIMITS = {
    "core lines": 1_225,  # non-blank, of CORE and all that it imports, transitively
    "package lines": 7_836,  # non-blank, of every text file under enn_np/
    "longest file": 370,  # non-blank
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


@pytest.mark.parametrize("mark", MARKS)
def test_tables_are_the_stored_results(mark):
    assert _between_marks(mark) == table(*mark.split(":"), RESULTS)


@pytest.mark.parametrize("run", re.findall(r"<!-- claims:([\w-]+) -->", TABLES))
def test_tables_of_claims_are_the_stored_traces(run):
    """And so are the numbers that lie beside the figures."""
    numbers = claims.measure(*stored_traces(RESULTS, run))
    assert _between_marks(f"claims:{run}") == claims.table(numbers)
    assert json.loads((RESULTS / "figures" / f"{run}-claims.json").read_text(encoding="utf-8")) == numbers


def test_generated_tables_are_on_the_page_of_results_alone():
    assert "<!--" not in README and len(MARKS) == len(set(MARKS)) > 30


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page]):
        path, _, heading = target.partition("#")
        path = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert path.exists(), target
        assert not heading or heading in _anchors(path.read_text(encoding="utf-8")), target


def _between_marks(name):
    return TABLES.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0].strip()


def _anchors(text):
    """The headings of a Markdown page as links name them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
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
