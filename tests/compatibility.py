"""Run the whole suite on other Pythons and on the lowest and newest NumPy that each may have.

    python tests/compatibility.py python3.10 python3.13 --work /tmp/compatibility

For every interpreter and either end of the versions: a virtual environment, the requirements, then the tests on a copy
of the tree without the package, which is installed instead, with warnings as errors (pyproject.toml). The package's
folder is then made read-only and, for root, who may write anywhere, the tests run as the user "nobody".
Prints a table and writes WORK/compatibility.json. Needs a network, and minutes for each row.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The oldest release of each requirement with wheels for that Python, where it is not the oldest that we support.
OLDEST = {
    (3, 12): {"numpy": "1.26.0", "scipy": "1.11.2", "matplotlib": "3.8.0"},
    (3, 13): {"numpy": "2.1.0", "scipy": "1.14.1", "matplotlib": "3.9.2"},
}
TESTS = {"pytest": "8.0.0", "pytest-cov": "5.0.0", "hypothesis": "6.100.0"}
OF_THEIR_TIME = {"pyparsing": "3.1.4"}  # what an old Matplotlib asks for without a limit, and now warns of


def requirements(version, newest):
    """What to install, as pip reads it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = dict(re.findall(r'"(\w+)>=([\d.]+)"', re.search(r"^dependencies = .*?]", text, re.M | re.S)[0]))
    if newest:
        return [*dependencies, *TESTS]
    lowest = dependencies | TESTS | OF_THEIR_TIME | OLDEST.get(version, {})
    return [f"{name}=={number}" for name, number in lowest.items()]


def environment(python, newest, work):
    """(its Python, what is in it) of a virtual environment, made unless it is there."""
    version = tuple(
        json.loads(subprocess.check_output([python, "-c", "import sys; print(list(sys.version_info[:2]))"]))
    )
    folder = work / f"{version[0]}.{version[1]}-{'newest' if newest else 'lowest'}"
    inside = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
        wanted = requirements(version, newest)
        subprocess.run([inside, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *wanted], check=True)
    subprocess.run([inside, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", ROOT], check=True)
    code = "import sys, numpy, scipy; print(sys.version.split()[0], numpy.__version__, scipy.__version__)"
    return inside, subprocess.check_output([inside, "-c", code], text=True).split()


def copy_without_package(work):
    """The tree as its tests need it, with the package taken out."""
    place = work / "tree"
    shutil.rmtree(place, ignore_errors=True)
    skip = shutil.ignore_patterns("enn_np", ".git", "runs", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, place, ignore=skip)
    return place


def run_tests(python, tree, arguments):
    """The last line of pytest's output, run where the package is read-only."""
    code = "import enn_np; print(enn_np.__path__[0])"
    package = Path(subprocess.check_output([python, "-c", code], text=True, cwd=tree).strip())
    for path in (package, *package.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    home = tree / "home"
    home.mkdir(exist_ok=True)
    command = [python, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", tree / "temp", *arguments]
    settings = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "MPLCONFIGDIR": str(home)}
    if os.name != "nt" and os.geteuid() == 0:
        subprocess.run(["chown", "-R", "nobody", tree], check=True)
        command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
    ended = subprocess.run(command, cwd=tree, env={**os.environ, **settings}, capture_output=True, text=True)
    for path in (package, *package.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    lines = ended.stdout.strip().splitlines() or [ended.stderr[-200:]]
    return lines[-1], [line for line in lines if line.startswith(("FAILED", "ERROR"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="+")
    parser.add_argument("--work", type=Path, default=Path("/tmp/compatibility"))
    parser.add_argument("--ends", nargs="+", default=["lowest", "newest"], choices=["lowest", "newest"])
    parser.add_argument("--pytest", nargs="*", default=[], help="which tests (all)")
    settings = parser.parse_args()
    settings.work.mkdir(parents=True, exist_ok=True)
    path = settings.work / "compatibility.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for interpreter in settings.pythons:
        for end in settings.ends:
            python, (version, numpy, scipy) = environment(interpreter, end == "newest", settings.work)
            result, failed = run_tests(python, copy_without_package(settings.work), settings.pytest)
            rows.append({"python": version, "numpy": numpy, "scipy": scipy, "result": result, "failed": failed})
            print(f"Python {version:<9}NumPy {numpy:<8}SciPy {scipy:<8}{result}", *failed, sep="\n  ", flush=True)
            path.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
