"""The README proves itself: its examples run, its tables are the stored results, its promises about size hold."""

import json
import re
from pathlib import Path

import pytest
from enn_np.report import MARKS, table

from enn_np import claims, cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in cli.PAGES}
CORE = ("backend", "ops", "cells", "engram", "bptt", "gradcheck", "losses", "optim")


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_every_example_runs_as_it_stands(example, capsys):
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_two_commands_each_on_one_line():
    """Quick start is two pasteable lines: the demo, then the tests (which CI takes from here)."""
    fences = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert [command.count("\n") for command in fences[:2]] == [1, 1]
    assert "enn_np demo" in fences[0] and "pytest" in fences[1]


@pytest.mark.parametrize(
    "page, mark", [(page, mark) for page, text in PAGES.items() for mark in re.findall(MARKS, text)]
)
def test_tables_are_the_stored_results(page, mark):
    name = ":".join(mark)
    shown = PAGES[page].split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0].strip()
    assert shown == table(*mark, ROOT / "data" / "results")


@pytest.mark.parametrize("run", re.findall(r"<!-- claims:([\w-]+) -->", README))
def test_tables_of_claims_are_the_stored_traces(run):
    """And so are the numbers that lie beside the figures."""
    shown = README.split(f"<!-- claims:{run} -->\n")[1].split(f"<!-- /claims:{run} -->")[0].strip()
    numbers = claims.measure(*claims.stored(ROOT / "data" / "results", run))
    assert shown == claims.table(numbers)
    path = ROOT / "data" / "results" / "figures" / f"{run}-claims.json"
    assert json.loads(path.read_text(encoding="utf-8")) == numbers


def test_what_a_reader_must_read_stays_short():
    """Under 1,000 lines of code and comments for every gradient, no file over 400, 8,400 in all."""
    lengths = {}
    for path in (ROOT / "enn_np").glob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        lengths[path.stem] = sum(1 for line in lines if line.strip())
    assert sum(lengths[name] for name in CORE) < 1000
    assert max(lengths.values()) < 400
    assert sum(lengths.values()) < 8400


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_the_readme_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page]):
        assert ((ROOT / page).parent / target).exists(), target
