"""The cells once more, slow and obviously right: one sample, one slot and one number at a time.

Only Python floats, lists and `math`; nothing of the package is used. Every function returns nested lists.
Weights and states come in as lists too (`array.tolist()`), time first as in the package.
"""

import math


def rnn(p, x, state, mask):
    """Hidden states [T][B][H] and the final (h,) of the RNN."""

    def step(row, h):
        W_x, W_h, b = p["W_x"][0], p["W_h"][0], p["b"][0]
        return ([math.tanh(s) for s in total(affine(row, W_x, b), affine(h, W_h))],)

    return over_time(step, x, state, mask)


def gru(p, x, state, mask):
    """As `rnn`, for the GRU whose reset acts after the product (Keras' reset_after=True)."""

    def step(row, h):
        from_x = [affine(row, p["W_x"][g], p["b_x"][g]) for g in range(3)]
        from_h = [affine(h, p["W_h"][g], p["b_h"][g]) for g in range(3)]
        new = []
        for i, old in enumerate(h):
            z = sigmoid(from_x[0][i] + from_h[0][i])
            r = sigmoid(from_x[1][i] + from_h[1][i])
            n = math.tanh(from_x[2][i] + r * from_h[2][i])
            new.append(z * old + (1 - z) * n)
        return (new,)

    return over_time(step, x, state, mask)


def lstm(p, x, state, mask):
    """As `rnn`, for the LSTM; the final state is (h, c)."""

    def step(row, h, c):
        sums = [total(affine(row, p["W_x"][g], p["b"][g]), affine(h, p["W_h"][g])) for g in range(4)]
        new_h, new_c = [], []
        for i, old in enumerate(c):
            memory = sigmoid(sums[1][i]) * old + sigmoid(sums[0][i]) * math.tanh(sums[2][i])
            new_c.append(memory)
            new_h.append(sigmoid(sums[3][i]) * math.tanh(memory))
        return new_h, new_c

    return over_time(step, x, state, mask)


def lem(p, x, state, mask, dt):
    """As `rnn`, for the LEM; the final state is (h, c)."""

    def step(row, h, c):
        from_x = [affine(row, p["W_x"][g], p["b"][g]) for g in range(4)]
        from_h = [affine(h, p["W_h"][g]) for g in range(3)]
        new_h, new_c = [], []
        for i, old in enumerate(c):
            share = dt * sigmoid(from_x[0][i] + from_h[0][i])
            new_c.append((1 - share) * old + share * math.tanh(from_x[2][i] + from_h[2][i]))
        from_c = affine(new_c, p["W_h"][3])
        for i, old in enumerate(h):
            share = dt * sigmoid(from_x[1][i] + from_h[1][i])
            new_h.append((1 - share) * old + share * math.tanh(from_x[3][i] + from_c[i]))
        return new_h, new_c

    return over_time(step, x, state, mask)


def convolution(p, x, state, mask):
    """As `rnn`, for the Convolution; the final state is (h, past)."""

    def step(row, _, past):
        seen = [row, *past]  # latest first
        return [sum(w[i] * v[i] for w, v in zip(p["w"], seen, strict=True)) + b for i, b in enumerate(p["b"])], seen[
            :-1
        ]

    return over_time(step, x, state, mask)


def over_time(step, x, state, mask):
    """Repeat `step(input row, *parts of one sample's state)`; a padded step leaves its sample as it was."""
    samples = [list(parts) for parts in zip(*state, strict=True)]
    h = []
    for t, rows in enumerate(x):
        for b, row in enumerate(rows):
            if mask is None or mask[t][b]:
                samples[b] = step(row, *samples[b])
        h.append([parts[0] for parts in samples])
    return h, tuple(zip(*samples, strict=True))


def engram(cell, p, x, state, mask, noise):
    """Equations (1) to (9) of the Engram cell, with its switches as attributes of `cell`.

    Returns h [T][B][H], the trace after every step (like the state's, with T in front), and the retrieval
    weights [T][B][N], None where a step is padding.
    """
    h, A = state
    T, B, N, H = len(x), len(x[0]), cell.slots, cell.hidden
    all_h, all_A, all_a = [], [], []
    for t in range(T):
        alive = [b for b in range(B) if mask is None or mask[t][b]]
        eps = noise[t] if noise is not None else [[0.0] * H] * N
        z, a, h = {}, {}, list(h)
        for b in alive:
            A_b = A if cell.trace == "batch" else A[b]
            z[b], a[b], h[b] = engram_sample(cell, p, x[t][b], h[b], A_b)
        if cell.trace == "batch" and alive:
            mean = [[sum(a[b][n] * z[b][i] for b in alive) / len(alive) for i in range(H)] for n in range(N)]
            A = engram_trace(cell, A, mean, eps)
        if cell.trace == "sample":
            A = list(A)
            for b in alive:
                own = [[a[b][n] * z[b][i] for i in range(H)] for n in range(N)]
                A[b] = engram_trace(cell, A[b], own, eps)
        all_h.append(h)
        all_A.append(A)
        all_a.append([a.get(b) for b in range(B)])
    return all_h, all_A, all_a


def engram_sample(cell, p, row, h, A):
    """Equations (1) to (7) for one sample: cue, retrieval weights, new hidden state."""
    z = relu(affine(row, p["W_z"], p["b_z"]))
    if cell.layer_norm:
        z = layer_norm(z, p["gamma_z"], p["beta_z"])  # (1)
    M_eff = [total(M, [cell.trace_scale * v for v in row]) for M, row in zip(p["M"], A, strict=True)]  # (2)
    s = [sum(u * v for u, v in zip(unit(z), unit(slot), strict=True)) for slot in M_eff]  # (3)
    tau = cell.temperature / (1 + 10 * cell.sparsity)
    a = retrieve(cell, [score / tau for score in s])  # (4)
    m = affine(a, M_eff)  # (5)
    c = relu(affine(z + m + h, p["W_c"], p["b_c"]))  # (6)
    new = relu(affine(c, p["W_h"], p["b_h"]))
    if cell.layer_norm:
        new = layer_norm(new, p["gamma_h"], p["beta_h"])  # (7)
    return z, a, new


def engram_trace(cell, A, D, eps):
    """Equation (9) for one trace [N][H]. Where nothing is learned, nothing is clipped either."""
    eta, c = cell.hebbian_rate, cell.trace_clip
    if eta == 0:
        return A
    new = []
    for A_n, D_n, eps_n in zip(A, D, eps, strict=True):
        rows = [(1 - eta) * old + eta * (d + e) for old, d, e in zip(A_n, D_n, eps_n, strict=True)]
        new.append(rows if c is None else [min(max(value, -c), c) for value in rows])
    return new


def binding(cell, p, x, state, mask):
    """Equations (1) to (9) of the Binding cell, with its switches as attributes of `cell`.

    Returns h, the trace and the address after every step, each a list over time.
    """
    h, A, last = state
    over_time = []
    for t, rows in enumerate(x):
        alive = [b for b in range(len(rows)) if mask is None or mask[t][b]]
        h, a, old_A, writes = list(h), list(last), A, {}
        for b in alive:
            trace = old_A if cell.trace == "batch" else old_A[b]
            h[b], a[b], g, v = binding_sample(cell, p, rows[b], h[b], trace)
            at = last[b] if cell.write_at == "previous" else a[b]
            recalled = affine(at, trace) if cell.rule == "delta" else [0] * len(v)
            writes[b] = [g * address for address in at], [new - old for new, old in zip(v, recalled, strict=True)]
        if cell.trace == "sample":
            A = [binding_trace(cell, p, old_A[b], [writes[b]]) if b in writes else old_A[b] for b in range(len(rows))]
        elif alive:
            A = binding_trace(cell, p, old_A, list(writes.values()))
        last = a
        over_time.append((h, A, last))
    return [list(part) for part in zip(*over_time, strict=True)]


def binding_sample(cell, p, row, h, A):
    """(1) to (5), (8) and (9) for one sample: new hidden state, address, plasticity, value."""
    sums = affine(row, p["W_z"], p["b_z"])
    sums = total(sums, affine(h, p["U_z"])) if cell.recurrent_cue else sums
    z = layer_norm(relu(sums), p["gamma_z"], p["beta_z"])  # (1)
    if cell.address == "key":
        a = unit(z)  # (2)
    else:
        s = [sum(u * v for u, v in zip(unit(z), unit(slot), strict=True)) / cell.temperature for slot in p["M"]]
        exps = [math.exp(value - max(s)) for value in s]
        a = [value / sum(exps) for value in exps]  # (2)
    m = total(affine(a, A), affine(a, p["M"])) if cell.bank_read else affine(a, A)  # (3)
    v = affine(row, p["W_v"], p["b_v"])  # (4)
    g = cell.rate
    if cell.plasticity == "gate":
        g = sigmoid(affine(row, p["w_g"], p["b_g"])[0] + affine(h, p["u_g"])[0])  # (5)
    c = relu(affine(z + m + h, p["W_c"], p["b_c"]))
    k = layer_norm(relu(affine(c, p["W_h"], p["b_h"])), p["gamma_h"], p["beta_h"])  # (8)
    if not cell.gated:
        return k, a, g, v
    u = [sigmoid(value) for value in affine(z + m + h, p["W_u"], p["b_u"])]
    return [u_i * h_i + (1 - u_i) * k_i for u_i, h_i, k_i in zip(u, h, k, strict=True)], a, g, v  # (9)


def binding_trace(cell, p, A, writes):
    """(7) for one trace: the mean over `writes`, pairs of write weights and value."""
    new = []
    for n, row in enumerate(A):
        delta = sigmoid(p["d"][n]) if cell.learned_decay else cell.decay
        keep = (1 - delta) * (1 - (cell.rule == "replace") * sum(w[n] for w, _ in writes) / len(writes))
        new.append([keep * old + sum(w[n] * v[i] for w, v in writes) / len(writes) for i, old in enumerate(row)])
    return new


def window(cell, p, x, state, mask):
    """Equations (1) to (9) of the Window cell: h, keys, values and the last cue after every step, lists over time."""
    samples = [list(parts) for parts in zip(*state, strict=True)]  # of every sample h, keys, values, z
    over_time = []
    for t, rows in enumerate(x):
        samples = [list(parts) for parts in samples]
        for b, row in enumerate(rows):
            if mask is None or mask[t][b]:
                samples[b] = window_sample(cell, p, row, *samples[b])
        over_time.append(list(zip(*samples, strict=True)))
    return [[list(each) for each in part] for part in zip(*over_time, strict=True)]


def window_sample(cell, p, row, h, keys, values, last):
    """One step of one sample."""
    z = layer_norm(relu(affine(row, p["W_z"], p["b_z"])), p["gamma_z"], p["beta_z"])  # (1)
    a = attend(cell, unit(z), [unit(slot) for slot in p["M"]])  # (2)
    m = total(affine(a, p["M"]), affine(attend(cell, unit(z), keys), values))  # (3), (4)
    v = affine(row, p["W_v"], p["b_v"])  # (5)
    c = relu(affine(z + m + h, p["W_c"], p["b_c"]))
    k = layer_norm(relu(affine(c, p["W_h"], p["b_h"])), p["gamma_h"], p["beta_h"])  # (8)
    u = [sigmoid(value) for value in affine(z + m + h, p["W_u"], p["b_u"])]
    new = [u_i * h_i + (1 - u_i) * k_i for u_i, h_i, k_i in zip(u, h, k, strict=True)]  # (9)
    return [new, [*keys[1:], last], [*values[1:], v], unit(z)]


def attend(cell, z, keys):
    """Softmax of the inner products of z with the keys."""
    s = [sum(u * v for u, v in zip(z, key, strict=True)) / cell.temperature for key in keys]
    exps = [math.exp(value - max(s)) for value in s]
    return [value / sum(exps) for value in exps]


def retrieve(cell, s):
    """Retrieval weights of one sample from its scaled scores."""
    if cell.retrieval == "sparsemax":
        return sparsemax(s)
    keep = s
    if cell.retrieval == "top_k":  # a slot stays if fewer than k are better
        keep = [v if sum(other > v for other in s) < cell.top_k else -math.inf for v in s]
    exps = [math.exp(v - max(s)) for v in keep]
    return [v / sum(exps) for v in exps]


def sparsemax(s):
    """max(s - t, 0) with the threshold t that makes it sum to 1, found by halving an interval."""
    low, high = min(s) - 1, max(s)
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if sum(max(v - t, 0) for v in s) > 1 else (low, t)
    return [max(v - t, 0) for v in s]


def affine(row, W, b=None):
    """row W + b, one product at a time."""
    sums = [sum(v * W[i][j] for i, v in enumerate(row)) for j in range(len(W[0]))]
    return sums if b is None else total(sums, b)


def total(one, other):
    return [u + v for u, v in zip(one, other, strict=True)]


def relu(values):
    return [max(v, 0.0) for v in values]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def unit(values):
    length = math.sqrt(max(sum(v * v for v in values), 1e-12))
    return [v / length for v in values]


def layer_norm(values, gamma, beta):
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-6)
    return [g * (v - mean) / sd + b for v, g, b in zip(values, gamma, beta, strict=True)]
