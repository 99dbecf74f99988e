"""Same tests, same examples, every time: one BLAS thread and Hypothesis without chance.

ENN_HYPOTHESIS=thorough draws 40 times as many examples, and new ones at every call.
"""

import os

# Before NumPy is imported: BLAS threads beside another busy process spin, and cost far more than they give.
for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(variable, "1")

for variable in [name for name in os.environ if name == "COLUMNS" or name.startswith("TQDM_")]:
    del os.environ[variable]  # how wide a terminal is, and whether it shows bars

import signal  # noqa: E402
import sys  # noqa: E402

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background comes with Ctrl-C ignored
EXAMPLES = 25
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("ci", max_examples=EXAMPLES, derandomize=True, **common)
settings.register_profile("thorough", max_examples=40 * EXAMPLES, print_blob=True, **common)
settings.load_profile(os.environ.get("ENN_HYPOTHESIS", "ci"))


def pytest_make_parametrize_id(val):
    """No bytes in the name of a test: gzip writes the second into them, and two processes must find the same names."""
    return "bytes" if isinstance(val, bytes) else None


@pytest.fixture
def card(monkeypatch):
    """The stand-in for CuPy in its place: device="cuda" means it."""
    import strict

    monkeypatch.setitem(sys.modules, "cupy", strict)
    return strict


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium; for tests marked `needs_browser` or `needs_chromium`."""
    from browser import started

    with started(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture
def small(monkeypatch):
    """Networks and data of tasks with fresh sequences that take no time, and no figures."""
    from enn_np.lab import pages, table, work

    for name, value in {"PARAMETERS": 1_500, "TOLERANCE": 0.5, "SLOTS": 4}.items():
        monkeypatch.setattr(table, name, value)
    for name, value in {"VALIDATION": 20, "TEST": 30, "EVERY": 2}.items():
        monkeypatch.setattr(work, name, value)
    monkeypatch.setattr(pages, "draw", lambda *_: [])
