"""Every exercise to derive accepts its solution and refuses typical wrong answers; nbgrader grades them as they stand.

WRONG says of each what students get wrong: a name for it, what stands in the solution, and what they write instead.
"""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks need jupyter: pip install -r requirements.txt")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))
import run  # noqa: E402

sys.path.remove(str(FOLDER))

WRONG = {
    "01-leaky_back": {
        "wrong sign": ("ds = leak", "ds = -leak"),
        "forgotten factor": ("leak * dh * (1", "dh * (1"),
        "forgotten term": ("(1 - leak) * dh + ", ""),
        "not transposed": ("W_h.T", "W_h"),
    },
    "01-weight_gradients": {
        "wrong state": ("h[:-1]", "h[1:]"),
        "wrong axis": ("ds.sum((0, 1))", "ds.sum(0)"),
        "wrong sign": ("dW_x = np", "dW_x = -np"),
        "mean for sum": ("ds.sum((0, 1))", "ds.mean((0, 1))"),
    },
    "01-readout_back": {
        "wrong sign": ("h @ V - y", "y - h @ V"),
        "forgotten factor": ("2 * (h", "(h"),
        "mean over the batch only": ("y.size", "len(y)"),
        "not transposed": ("h.T @ dy", "(h.T @ dy).T"),
    },
    "02-reset_before_back": {
        "wrong sign": ("dq = dn_in", "dq = -dn_in"),
        "forgotten factor": ("dq * r", "dq"),
        "as reset after": ("dq = dn_in @ W.T\n    return dq * h, dq * r", "return dn_in * (h @ W), (dn_in * r) @ W.T"),
        "not transposed": ("W.T", "W"),
    },
    "02-coupled_back": {
        "forgotten term": ("dc * (c - g)", "dc * c"),
        "wrong sign": ("(c - g)", "(g - c)"),
        "forgotten factor": ("dc * f,", "dc,"),
    },
    "02-peephole_back": {
        "forgotten term": (" + do_in * p", ""),
        "forgotten factor": (" * o * (1 - o)", ""),
        "wrong sign": ("+ do_in * p", "- do_in * p"),
        "wrong axis": (".sum(0)", ".sum(1)"),
    },
    "03-cosines": {
        "wrong sign": ("return np", "return -np"),
        "forgotten factor": ("unit(M_eff)", "M_eff"),
        "cue not divided": (", unit(z)", ", z"),
        "wrong axis": ("unit(M_eff)", "unit(M_eff.swapaxes(1, 2)).swapaxes(1, 2)"),
    },
    "03-retrieve": {
        "wrong sign": ("np.exp((", "np.exp(-("),
        "forgotten factor": (" / tau)", ")"),
        "wrong axis": ("a.sum(-1, keepdims=True)", "a.sum(0, keepdims=True)"),
        "overflows": ("(s - s.max(-1, keepdims=True))", "s"),
    },
    "03-integrate": {
        "wrong order": ("from_z, from_m, from_h =", "from_z, from_h, from_m ="),
        "forgotten term": (" + b_c", ""),
        "wrong sign": ("m @ from_m", "-m @ from_m"),
        "no ReLU": ("np.maximum(", "np.add("),
        "wrong axis": ("np.split(W_c, 3)", "np.split(W_c, 3, axis=1)"),
    },
    "04-mean_written": {
        "wrong sign": ("share = alive", "share = -alive"),
        "divided by B": ("max(alive.sum(), 1)", "len(alive)"),
        "padding writes": ("share = alive", "share = np.ones(len(alive))"),
        "nobody alive": ("max(alive.sum(), 1)", "alive.sum()"),
        "wrong axis": ("(share[:, None] * a).T @ z", "((share[:, None] * a).T @ z).T"),
    },
    "04-unrolled": {
        "forgotten term": ("(1 - eta) ** T * A_0 + ", ""),
        "forgotten factor": ("eta * (1 - eta)", "(1 - eta)"),
        "wrong direction": ("[::-1]", ""),
        "wrong sign": ("+ np.einsum", "- np.einsum"),
    },
    "04-recall_as_attention": {
        "forgotten factor": ("eta * (1 - eta)", "(1 - eta)"),
        "faded once too often": ("age = np.arange(t)[::-1]", "age = np.arange(t)[::-1] + 1"),
        "no similarity": (" * (a[:t] @ a[t])", ""),
        "wrong sign": ("weights = eta", "weights = -eta"),
    },
    "05-write_back": {
        "wrong sign": ("dD = eta", "dD = -eta"),
        "forgotten factor": ("eta * dA_bar\n", "dA_bar\n"),
        "forgotten clip": (" * (abs(A) < clip)", ""),
        "nothing fades": ("return (1 - eta) * dA_bar", "return dA_bar"),
        "wrong axis": ('"bnh,bn->bh", dD, a', '"bnh,bh->bh", dD, z'),
    },
    "05-rms_norm_back": {
        "wrong sign": ("dx_hat - x_hat", "dx_hat + x_hat"),
        "forgotten factor": ("dx_hat = dy * gamma", "dx_hat = dy"),
        "forgotten term": (" - x_hat * along", ""),
        "wrong axis": (".sum(0)", ".sum(1)"),
        "sum for mean": ("x_hat).mean(-1", "x_hat).sum(-1"),
    },
    "05-distance_back": {
        "wrong sign": ("dz = -2", "dz = 2"),
        "forgotten factor": ("dM = 2 * ", "dM = "),
        "forgotten term": (" - ds.sum(0)[:, None] * M", ""),
        "wrong axis": ("ds.sum(1)[:, None] * z", "ds.sum(0)[:, None].sum() * z"),
    },
    "14-keep_back": {
        "wrong sign": ("(dA * A)", "-(dA * A)"),
        "forgotten factor": ("keep[:, None] * dA", "dA"),
        "wrong axis": ("axis=(0, 2)", "axis=(0, 1)"),
        "one sample only": ("(dA * A).sum(axis=(0, 2))", "(dA * A)[0].sum(1)"),
    },
    "14-rate_back": {
        "wrong sign": ("D - A", "A - D"),
        "forgotten term": ("(D - A)", "D"),
        "forgotten factor": (" * eta * (1 - eta)", ""),
        "wrong axis": (".sum(2)", ".sum(1)"),
    },
    "14-PerSlot": {
        "wrong sign": ("per_entry = d.A", "per_entry = -d.A"),
        "forgotten factor": (" * keep * (1 - keep)", ""),
        "forgotten term": ("de.eta + per_entry.sum(axis=(1, 2))[:, None]", "de.eta"),
        "nothing fades back": ("before.A + (keep - (1 - e.eta[:, :, None])) * d.A", "before.A"),
        "wrong axis": ("per_entry.sum(axis=(0, 2))", "per_entry.sum(axis=(0, 1))[:4]"),
    },
    "15-replace_back": {
        "wrong sign": ("v[:, None] - A", "A - v[:, None]"),
        "forgotten term": ("v[:, None] - A", "v[:, None] + 0 * A"),
        "forgotten factor": ("(1 - w)[:, :, None] * dA", "dA"),
        "wrong axis": ('"bnh,bn->bh", dA, w', '"bnh,bh->bh", dA, v'),
    },
    "15-plasticity_back": {
        "wrong sign": ("ds = (dw", "ds = -(dw"),
        "forgotten factor": (" * g * (1 - g)", ""),
        "wrong axis": (".sum(1, keepdims=True)", ".sum(0, keepdims=True).sum(1, keepdims=True)"),
        "wrong factor": ("return g * dw", "return dw"),
    },
    "15-temperature_back": {
        "wrong sign": ("-(dy * s).sum()", "(dy * s).sum()"),
        "forgotten factor": ("return dy * np.exp(-theta)", "return dy"),
        "forgotten term": ("(da - (da * a).sum(1, keepdims=True))", "da"),
        "wrong axis": ("(da * a).sum(1, keepdims=True)", "(da * a).sum(0, keepdims=True)"),
    },
    "16-hebb_back": {
        "wrong sign": ("-(dA * A).sum()", "(dA * A).sum()"),
        "forgotten factor": ("(1 - delta) * dA", "dA"),
        "wrong factor": ("g * at_a, g * at_v", "at_a, g * at_v"),
        "wrong axis": ("(at_v * v).sum(1, keepdims=True)", "(at_v * v).sum(0, keepdims=True).sum(1, keepdims=True)"),
    },
    "16-delta_back": {
        "wrong sign": ("da = g * dw - np", "da = g * dw + np"),
        "forgotten term": (' - np.einsum("bnh,bh->bn", A, de)', ""),
        "forgotten factor": ("dA, g * a)", "dA, a)"),
        "nothing back to the trace": ('dA - np.einsum("bn,bh->bnh", a, de), da', "dA, da"),
    },
    "16-key_back": {
        "wrong sign": ("(da - (da * a)", "(da + (da * a)"),
        "forgotten factor": (" * a) / length", " * a)"),
        "forgotten term": ("(da - (da * a).sum(1, keepdims=True) * a)", "da"),
        "wrong axis": ("(da * a).sum(1, keepdims=True)", "(da * a).sum(0, keepdims=True)"),
    },
}
FAILS = AssertionError, AttributeError, TypeError, ValueError  # how a test refuses
EMPTY = "### BEGIN SOLUTION\n    # your code here\n    ### END SOLUTION"


@cache
def exercises():
    """{grade id: (notebook, empty function, solution, test)}, in reading order."""
    found = {}
    for path in run.notebooks():
        nb = nbformat.read(path, 4)
        for i, solution in run.solved(nb).items():
            grade_id = nb.cells[i].metadata.nbgrader.grade_id
            assert grade_id not in found
            found[grade_id] = path, nb.cells[i].source, solution, nb.cells[i + 1]
    return found


@cache
def definitions(path):
    """What a notebook defines before its exercises: imports, functions, classes, and named tuples, without its runs."""
    kinds = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef
    nodes = []
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code" or "nbgrader" in cell.metadata:
            continue
        for node in ast.parse(cell.source.replace("%matplotlib inline", "")).body:
            if isinstance(node, kinds) or (isinstance(node, ast.Assign) and "namedtuple" in ast.unparse(node.value)):
                nodes.append(node)
    return compile(ast.Module(nodes, []), path.name, "exec")


def grade(grade_id, answer):
    """Run the test of an exercise on an answer, as the notebook would."""
    path, _, _, test = exercises()[grade_id]
    names = {"__name__": "__main__", "rng": np.random.default_rng(0)}
    exec(definitions(path), names)
    exec(answer, names)
    exec(test.source, names)


@pytest.mark.parametrize("grade_id", WRONG)
def test_an_exercise_accepts_its_solution_and_no_empty_function(grade_id):
    _, empty, solution, _ = exercises()[grade_id]
    grade(grade_id, solution)
    assert EMPTY in empty and solution.startswith(empty.split("    ###")[0])
    with pytest.raises(FAILS):
        grade(grade_id, empty)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("grade_id, fault", [(name, fault) for name, faults in WRONG.items() for fault in faults])
def test_an_exercise_refuses_a_wrong_answer(grade_id, fault):
    solution, (right, wrong) = exercises()[grade_id][2], WRONG[grade_id][fault]
    assert solution.count(right) == 1
    with pytest.raises(FAILS):
        grade(grade_id, solution.replace(right, wrong))


def test_every_exercise_is_here_and_says_so_to_nbgrader():
    assert list(WRONG) == list(exercises())
    for grade_id, (path, _, _, test) in exercises().items():
        number, name = grade_id.split("-")
        graded = test.metadata.nbgrader
        assert path.name.startswith(number) and len(WRONG[grade_id]) >= 3
        assert graded.grade and graded.locked and graded.points > 0 and graded.grade_id == f"{number}-test-{name}"
    for number in ("01", "02", "03", "04", "05", "14", "15", "16"):
        assert sum(name.startswith(number) for name in WRONG) >= 3


def nbgrader(command, folder):
    command = [sys.executable, "-m", "nbgrader", *command.split(), f"--course-dir={folder}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_nbgrader_hands_out_and_grades_what_comes_back(tmp_path, monkeypatch):
    """A right answer, one with a wrong sign in the first exercise, and the notebook as it was handed out."""
    api = pytest.importorskip("nbgrader.api", reason="pip install nbgrader (only teachers need it)")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # nbgrader calls alembic
    run.main(["--student", str(tmp_path / "source" / "course"), "01"])
    nbgrader("generate_assignment course", tmp_path)
    (path,) = (tmp_path / "release" / "course").glob("*.ipynb")
    assert "raise NotImplementedError()" in path.read_text() and "(1 - leak)" not in path.read_text()

    solutions = {grade_id: given[2] for grade_id, given in exercises().items() if grade_id.startswith("01")}
    first = next(iter(solutions))
    wrong = solutions[first].replace(*WRONG[first]["wrong sign"])
    for student, answers in {"right": solutions, "sign": solutions | {first: wrong}, "empty": {}}.items():
        nb = nbformat.read(path, 4)
        for cell in nb.cells:
            grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
            cell.source = answers.get(grade_id, cell.source)
        target = tmp_path / "submitted" / student / "course" / path.name
        target.parent.mkdir(parents=True)
        nbformat.write(nb, target)
    nbgrader("autograde course", tmp_path)

    with api.Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        points = {each.student.id: each.score for each in book.assignment_submissions("course")}
        most = book.find_assignment("course").max_score
    assert most == sum(exercises()[grade_id][3].metadata.nbgrader.points for grade_id in solutions) > 0
    lost = exercises()[first][3].metadata.nbgrader.points
    assert points == {"right": most, "sign": most - lost, "empty": 0}
