"""What the rules of Binding leave in the trace, where it can be told by hand."""

import numpy as np
import pytest
from problems import assert_close, draw

from enn_np import Binding, gradcheck
from enn_np.look.attribution import written_by
from enn_np.ops import unit

RULES = ("replace", "hebb", "delta")


def told(rule, keys, values, address="key", g=1.0):
    """The trace (1, N, H) after values were told at addresses, one after the other, all by equations (6) and (7)."""
    hidden, slots = values.shape[1], keys.shape[1]
    cell = Binding(hidden, slots, rule=rule, address=address, plasticity="fixed", rate=g)
    params = cell.init(np.random.default_rng(0), 2, np.float64)
    state, A = cell.initial_state(1, np.float64), []
    for a, v in zip(keys, values, strict=True):
        e = cell.encode(params, np.zeros((1, 2)))
        e.v[...] = v
        state, _ = cell.step(params, e, state._replace(a=a[None]))
        A.append(state.A)
    return A


@pytest.mark.parametrize("rule", ("hebb", "delta"))
def test_keys_at_right_angles_are_recalled(rule):
    """Both rules are a table where no key overlaps another."""
    rng = np.random.default_rng(0)
    keys, values = np.linalg.qr(rng.standard_normal((5, 5)))[0][:3], rng.standard_normal((3, 5))
    assert_close([keys @ told(rule, keys, values)[-1][0]], [values])


def test_only_the_delta_rule_keeps_keys_apart_that_overlap():
    """The last pair told is recalled as it was told; Hebb's sum brings the others with it."""
    rng = np.random.default_rng(1)
    keys, values = unit(rng.standard_normal((4, 5)))[0], rng.standard_normal((4, 5))
    for a, v, A in zip(keys, values, told("delta", keys, values), strict=True):
        assert_close([a @ A[0]], [v])
    crosstalk = (keys[-1] @ keys[:-1].T) @ values[:-1]
    assert_close([keys[-1] @ told("hebb", keys, values)[-1][0]], [values[-1] + crosstalk])
    assert np.linalg.norm(crosstalk) > 0.1


def test_a_key_that_is_told_again_has_the_new_value():
    """Hebb's rule adds the two; the delta rule and replacing leave the second."""
    key, values = np.eye(4)[[1, 1]], np.random.default_rng(2).standard_normal((2, 4))
    for rule, want in (("hebb", values.sum(0)), ("delta", values[1]), ("replace", values[1])):
        address = "slots" if rule == "replace" else "key"
        assert_close([told(rule, key, values, address)[-1][0, 1]], [want])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("trace", ("sample", "batch"))
def test_every_gradient_of_every_rule(rule, trace):
    """Every coordinate of a small case, padding in it."""
    for address in ("slots", "key") if rule != "replace" else ("slots",):
        cell = Binding(3, 2, rule=rule, address=address, trace=trace, decay=0.2, learned_decay=True, recurrent_cue=True)
        errors = gradcheck.check(cell, steps=4, masked=True, every=True)
        assert max(errors.values()) < gradcheck.TOLERANCE and ("M" in errors) == (address == "slots")


def test_a_key_has_no_slots():
    with pytest.raises(ValueError, match=r'^address: a "key" needs rule="hebb" or "delta"'):
        Binding(3, 2, address="key")
    cell = Binding(3, 2, address="key", rule="delta")
    assert cell.slots == 3 and "M" not in cell.init(np.random.default_rng(0), 2)


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("address", ("slots", "key"))
def test_what_each_step_wrote_is_told(rule, address):
    """What step 5 recalls, by the step that wrote it: of the delta rule, only what was not there."""
    problem = draw(Binding(4, 3, rule=rule, address=address, decay=0.2), steps=6)
    tape = problem.forward()[2]
    seen, A = problem.cell.record(problem.params, tape), problem.cell.traces(tape)
    parts, last = written_by(problem.cell, tape, 5), np.concatenate((problem.state.a[None], seen["retrieval"]))
    told = seen["values"] - (np.einsum("tbn,tbnh->tbh", last[:6], A[:6]) if rule == "delta" else 0)
    for t in range(5):
        weight = (seen["retrieval"][5] * seen["written"][t]).sum(-1, keepdims=True) * 0.8 ** (4 - t)
        assert_close([parts["steps"][t]], [weight * told[t]])
    assert_close([parts["start"] + parts["steps"].sum(0)], [seen["trace_part"][5]])
    assert ("similarities" in seen) == (address == "slots")
