"""The first cases of every reader in `fuzz.py`, and those that once failed."""

import fuzz
import pytest

CASES = 30
TARGETS = fuzz.targets()
SLOW = {"run directory with a model": 15}


@pytest.fixture(autouse=True)
def bounded():
    """No case may take memory or time that its file does not warrant."""
    with fuzz.limited():
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_files_that_nobody_vouches_for(name, tmp_path):
    """One clear error or a valid result, whatever a file holds: see `fuzz.run_case`."""
    for number in (*fuzz.KEPT.get(name, ()), *range(SLOW.get(name, CASES))):
        fuzz.timed()
        fuzz.run_case(name, number, tmp_path / "case")


@pytest.mark.parametrize("name", TARGETS)
def test_the_good_file_is_read(name, tmp_path, monkeypatch):
    """Else all the refusals would prove nothing."""
    monkeypatch.setattr(TARGETS[name], "change", lambda rng, data: data)
    assert fuzz.run_case(name, 0, tmp_path / "case") == "read"


def test_a_reader_that_stumbles_is_found(tmp_path, monkeypatch):
    """The campaign must not count what it should report: a bare KeyError, silence about the file, a line too many."""
    for error in (KeyError("x"), ValueError("no file named"), ValueError(f"{tmp_path / 'case'}\n")):

        def read(folder, error=error):
            raise error

        monkeypatch.setitem(TARGETS, "bad", fuzz.Target({"a": b"x"}, read))
        with pytest.raises(AssertionError, match="bad 1"):
            fuzz.run_case("bad", 1, tmp_path / "case")
