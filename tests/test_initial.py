"""Initial values as Keras draws them: bounds, spread, orthogonality, the paper's parameter counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import KINDS, assert_close, assert_same, seeds

from enn_np import GRU, LEM, LSTM, RNN, Convolution, Engram, ops

LAYERS = ((28, 128), (128, 64))  # inputs and hidden units of the baselines' two layers
every_cell = pytest.mark.parametrize("kind", KINDS)


def generator(seed=0):
    return np.random.default_rng(seed)


def size(params):
    return sum(value.size for value in params.values())


@pytest.mark.parametrize("fans", [None, (60, 600)])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_glorot_uniform(lead, fans):
    """Catches fans of the wrong axes, and a limit without the root or the 6."""
    limit = np.sqrt(6 / sum(fans or (60, 200)))
    draw = ops.glorot_uniform(generator(), (*lead, 60, 200), fans)
    assert draw.shape == (*lead, 60, 200) and abs(draw).max() <= limit
    assert abs(draw).max() > 0.99 * limit
    assert draw.var() == pytest.approx(limit**2 / 3, rel=0.05) and abs(draw.mean()) < 0.02 * limit


def test_he_normal():
    """Catches a fan of the wrong axis, a cut that is missing, and a spread that the cut makes too small."""
    draw, sd = ops.he_normal(generator(), (50, 2000)), np.sqrt(2 / 50)
    assert draw.std() == pytest.approx(sd, rel=0.02) and abs(draw.mean()) < 0.02 * sd
    bound = 2 * sd / 0.8796256610342398  # Keras draws wider, then cuts
    assert abs(draw).max() <= bound and abs(draw).max() > 0.99 * bound


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=seeds)
def test_orthogonal(rows, columns, seed):
    """Catches columns that are orthonormal where rows should be, and the other way round."""
    Q = ops.orthogonal(generator(seed), rows, columns)
    assert Q.shape == (rows, columns)
    gram = Q @ Q.T if rows <= columns else Q.T @ Q
    assert_close([gram], [np.eye(min(rows, columns))])


def test_orthogonal_is_uniform():
    """Catches the missing sign of QR: LAPACK's diagonal is not random, so entries would lean to one side."""
    first = np.array([ops.orthogonal(generator(seed), 3, 3) for seed in range(400)])
    assert abs(first.mean(0)).max() < 4 / np.sqrt(3 * 400)
    assert_close([(first**2).mean(0)], [np.full((3, 3), 1 / 3)], 0.2)


@every_cell
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_init_repeats_with_the_seed(kind, dtype):
    """Catches hidden randomness, a wrong precision, and arrays that are no plain C order."""
    one, same, other = (kind(6).init(generator(seed), 6, dtype) for seed in (1, 1, 2))
    assert_same(one, same)
    assert any((one[name] != other[name]).any() for name in one)
    assert all(value.dtype == dtype and value.flags.c_contiguous for value in one.values())


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_baselines_start_as_in_keras(kind):
    """Catches fans per gate, recurrent gates orthogonal one by one only, and biases that are not zero."""
    cell, D, H = kind(20), 30, 20
    params, G = cell.init(generator(), D, np.float64), cell.gates
    limit = np.sqrt(6 / (D + G * H))
    assert params["W_x"].shape == (G, D, H) and 0.95 * limit < abs(params["W_x"]).max() <= limit
    packed = np.concatenate(params["W_h"], axis=1)  # Keras' (H, G H)
    assert_close([packed @ packed.T], [np.eye(H)])
    for name in cell.biases:
        want = np.zeros((G, H))
        want[1:2] = kind is LSTM  # the forget gate remembers until it learns to forget
        assert_same([params[name]], [want])


def test_lem_starts_as_in_the_authors_code():
    """Catches zero biases, and a limit that depends on the inputs."""
    params = LEM(40).init(generator(), 30, np.float64)
    assert [value.shape for value in params.values()] == [(4, 30, 40), (4, 40, 40), (4, 40)]
    assert all(0.95 / np.sqrt(40) < abs(value).max() <= 1 / np.sqrt(40) for value in params.values())


def test_a_convolution_starts_near_the_identity():
    """Catches weights in the order of time, so that the first step after a sequence of zeros would hear nothing."""
    params = Convolution(300).init(generator(), 300, np.float64)
    assert params["w"].shape == (4, 300) and (params["w"][0] == 1).all() and not params["b"].any()
    assert params["w"][1:].std() == pytest.approx(0.1, rel=0.1)


def test_engram_starts_as_in_keras():
    """Catches a matrix drawn by another's rule, and a layer norm that does not start as the identity."""
    params = Engram(40, 30).init(generator(), 50, np.float64)
    for name, fan in {"W_z": 50, "W_c": 120, "W_h": 120}.items():
        assert params[name].std() == pytest.approx(np.sqrt(2 / fan), rel=0.05)
    limit = np.sqrt(6 / (30 + 40))
    assert 0.95 * limit < abs(params["M"]).max() <= limit
    assert all((params[name] == 1).all() for name in ("gamma_z", "gamma_h"))
    assert not any(params[name].any() for name in ("b_z", "b_c", "b_h", "beta_z", "beta_h"))


def test_no_layer_norm_no_parameters_for_it():
    """Catches parameters that nothing reads."""
    with_norm, without = (Engram(4, 3, layer_norm=on).init(generator(), 2) for on in (True, False))
    assert with_norm.keys() - without.keys() == {"gamma_z", "beta_z", "gamma_h", "beta_h"}


def test_parameter_counts_of_the_paper():
    """Catches a missing or doubled array: a dense head of 10 on top gives SPEC's totals."""
    head = 64 * 10 + 10
    engram = size(Engram(128, 64).init(generator(), 28))
    assert engram == 209_536 and engram + 128 * 10 + 10 == 210_826
    assert [size(RNN(H).init(generator(), D)) for D, H in LAYERS] == [20_096, 12_352]
    for kind, total in {RNN: 33_098, GRU: 98_570, LSTM: 130_442}.items():
        assert sum(size(kind(H).init(generator(), D)) for D, H in LAYERS) + head == total
