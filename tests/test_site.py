"""The site that one command builds: whole, readable everywhere, and the notebooks open in JupyterLite."""

import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import needs_chromium

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "notebooks" / "run.py"
NOTEBOOKS = sorted(path.stem for path in RUN.parent.glob("[0-9][0-9]_*.ipynb"))
TOOLS = ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline", "jupyterlite_core", "jupyterlite_pyodide_kernel")
needs_tools = pytest.mark.skipif(
    None in map(importlib.util.find_spec, (*TOOLS, "hatchling")), reason="needs pip install -e '.[site]'"
)


def test_a_missing_tool_and_a_full_folder_are_named_with_their_remedy(monkeypatch, tmp_path):
    """Before any work."""
    spec = importlib.util.spec_from_file_location("run", RUN)
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    missing = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else spec)
    with pytest.raises(SystemExit, match=r"--site: expected a new or empty folder, got .*remove it first"):
        run.main(["--site", str(ROOT)])
    missing.append("furo")
    with pytest.raises(SystemExit, match=r"--site: furo is not installed; run pip install -e '\.\[site\]'"):
        run.main(["--site", str(tmp_path / "site")])
    assert not (tmp_path / "site").exists()


BLOCKED = """
import sys
for name in ("scipy", "requests", "tqdm", "matplotlib", "pooch", "jinja2", "threadpoolctl", "mpi4py"):
    sys.modules[name] = None  # an import of it fails
import numpy as np
import enn_np, enn_np.gradcheck
from enn_np.data import images, tasks, text
from enn_np.lab import table
from enn_np.look import attribution, monitor, plots
x, y = tasks.associative_recall(np.random.default_rng(0), 8, 2)
model = enn_np.Classifier(enn_np.Binding(4, 5), 37, 10)
model.fit(x, y, epochs=1, verbose=0)
assert len(images.load_digits().x_train) > 1_000 and max(enn_np.gradcheck.check(enn_np.Engram(3, 4)).values()) < 1e-6
"""


def test_a_browser_needs_numpy_alone_to_train():
    """What Pyodide brings beside it is imported only where it is used."""
    subprocess.run([sys.executable, "-W", "error", "-c", BLOCKED], cwd=ROOT, check=True, timeout=120)


# ------------------------------------------------------------------------------------------------------- the files


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, RUN, "--site", out], capture_output=True, text=True, timeout=1_800)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Links(HTMLParser):
    """ids: what a link may point at; to: what it points at; loaded: what is shown or run; told: what pictures show."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.to, self.loaded, self.told = set(), [], [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.told += [attrs["alt"]] if tag == "img" else []
        loads = tag != "a" and attrs.get("rel") not in ("canonical", "next", "prev")
        for name in ("href", "src"):
            if attrs.get(name):
                (self.loaded if loads else self.to).append(attrs[name])


@needs_tools
def test_every_link_leads_to_a_page_and_a_heading_and_nothing_is_loaded_from_elsewhere(site):
    pages = {page: Links(page) for page in site.rglob("*.html") if "lite" not in page.relative_to(site).parts}
    for page, links in pages.items():
        assert not [each for each in links.loaded if urlsplit(each).scheme in ("http", "https")], page
        for link in (*links.to, *links.loaded):
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data", "mailto"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file(), (page, link)
            if target in pages and parts.fragment and page.name != "genindex.html":
                assert unquote(parts.fragment) in pages[target].ids, (page, link)


@needs_tools
def test_it_has_all_pages_and_is_small(site):
    for name in ("index", "glossary", "search", "README", "data/results/README", "notebooks/README"):
        assert (site / f"{name}.html").is_file(), name
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (site / "notebooks").glob("[0-9][0-9]_*.html")}
    assert sorted(pages) == NOTEBOOKS
    assert [name for name, page in pages.items() if "<p>| " in page] == []  # a table that a cell shows is a table
    told = {path.stem: Links(path).told for path in (site / "notebooks").glob("*.html")}
    assert sum(map(len, told.values())) > 50  # a sentence each, not the file's name
    assert [(name, alt) for name, alts in told.items() for alt in alts if len(alt.split()) < 4] == []
    assert (site / "notebooks/TEACHING.html").is_file() == (ROOT / "notebooks/TEACHING.md").is_file()
    assert (site / "live.html").read_bytes() == (RUN.parent / "live.html").read_bytes()
    assert not list((site / "_downloads").rglob("live.html"))  # links open it
    assert sorted(path.stem for path in (site / "lite/files/notebooks").glob("*.ipynb")) == NOTEBOOKS
    assert len(list((site / "lite/pypi").glob("enn_np-*-py3-none-any.whl"))) == 1
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 30e6


# -------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def wait(browser, script, seconds=120):
    """Ask until the answer is true, and return it."""
    for _ in range(4 * seconds):
        if answer := browser.ask(script):
            return answer
        time.sleep(0.25)
    raise AssertionError(f"not true after {seconds} seconds: {script}")


@needs_tools
@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), ((1200, "light"), (390, "dark")))
def test_pages_load_and_formulas_are_rendered(browser, address, width, scheme):
    for name in ("index", "glossary", "live", "data/results/README", *(f"notebooks/{name}" for name in NOTEBOOKS)):
        browser.open(f"{address}/{name}.html", width, scheme)
        rendered = 'document.querySelectorAll(".math").length === document.querySelectorAll("mjx-container").length'
        wait(browser, rendered)
        assert browser.ask('document.querySelectorAll("mjx-merror").length') == 0, name
        assert browser.ask("[...document.images].filter((each) => each.complete && !each.naturalWidth).length") == 0
        assert browser.ask("document.documentElement.scrollWidth") <= width, name
        assert (browser.picture()[-1, 0].mean() > 0.9) == (scheme == "light"), name
        assert browser.complaints() == [], name


@needs_tools
@needs_chromium
def test_search_finds_a_notebook(browser, address):
    browser.open(f"{address}/search.html?q=plasticity")
    shown = '[...document.querySelectorAll("#search-results li")].map((each) => each.innerText).join()'
    wait(browser, f'{shown}.includes("15 A memory that binds")')  # results come one after the other


def errors(browser, known):
    """Errors on the console in which none of the `known` words stands."""
    found = [each["message"] for each in browser.complaints() if each["level"] == "SEVERE"]
    return [each for each in found if not any(word in each for word in known)]


@needs_tools
@needs_chromium
def test_a_notebook_opens_and_its_kernel_starts(browser, address, site):
    """By a link of its page. Pyodide, Python and NumPy for a browser, comes from the network, or from a folder:
    ENN_PYODIDE, with the files of its npm package and the wheels that a kernel loads at its start."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in (site / "lite/extensions").rglob("*.js"))
    pyodide = re.search(r"https://[\w.-]+/pyodide/[\w./]+?/pyodide\.m?js", scripts)[0]
    if folder := os.environ.get("ENN_PYODIDE"):
        shutil.copytree(folder, site / "lite" / "pyodide")
        pyodide = f"{address}/lite/pyodide/pyodide.mjs"
        config = json.loads((site / "lite/jupyter-lite.json").read_text(encoding="utf-8"))
        kernels = config["jupyter-config-data"].setdefault("litePluginSettings", {})
        kernels.setdefault("@jupyterlite/pyodide-kernel-extension:kernel", {})["pyodideUrl"] = pyodide
        (site / "lite/jupyter-lite.json").write_text(json.dumps(config), encoding="utf-8")
    browser.open(f"{address}/notebooks/03_engram_forward.html")
    link = browser.ask('[...document.links].find((each) => each.textContent.includes("in the browser")).href')
    browser.open(link)
    wait(browser, '[...document.querySelectorAll("h1")].some((each) => each.textContent.startsWith("03 The Engram"))')
    assert "%pip install -q enn_np" in wait(browser, 'document.querySelector(".jp-CodeCell .cm-content")?.innerText')
    kernel = 'document.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status'
    wait(browser, f"({kernel}) !== undefined")

    known = ("/favicon.ico",)  # which JupyterLite looks for at the top
    try:
        urllib.request.urlopen(pyodide, timeout=10).close()
    except OSError as error:
        assert errors(browser, (*known, pyodide, "Uncaught (in promise)")) == []
        pytest.skip(f"the notebook opens; its kernel needs {pyodide}, which is not reached from here: {error}")
    wait(browser, f'{kernel} === "idle"', 300)
    assert errors(browser, known) == []
