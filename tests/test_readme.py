"""The README proves itself: its examples run, its tables are the stored results, its promises about size hold."""

import json
import re
from pathlib import Path

import pytest

from enn_np import claims
from enn_np.lab import cli
from enn_np.lab.pages import MARKS, stored_traces, table

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
    shown = PAGES[page].split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0].strip()
    assert shown == table(*mark.split(":"), ROOT / "data" / "results")


@pytest.mark.parametrize("path", [*(ROOT / "data" / "results" / "figures").glob("*-claims.json")])
def test_numbers_beside_the_figures_are_those_of_the_stored_traces(path):
    numbers = claims.measure(*stored_traces(ROOT / "data" / "results", path.stem.removesuffix("-claims")))
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
