"""The whole Engram network on one page: forward, backward through time, a check, Adam.

    OPENBLAS_NUM_THREADS=1 python notebooks/min_engram.py      learns to read digits

T steps, B batch, D inputs, H hidden, N slots, C classes. dv: gradient of the loss at v;
dr, dc, dq: at the sums inside their ReLUs.
"""

from pathlib import Path

import numpy as np

eta, alpha, tau, clip = 0.05, 0.5, 0.75, 0.1  # writing, weight of A, temperature, max |A|


def init(rng, D, H, N, C):
    p = dict(W_z=(D, H), M=(N, H), W_c=(3 * H, 3 * H), W_h=(3 * H, H), W_y=(H, C))
    p = {k: rng.normal(0, (2 / size[0]) ** 0.5, size) for k, size in p.items()}
    p |= dict(b_z=np.zeros(H), b_c=np.zeros(3 * H), b_h=np.zeros(H), b_y=np.zeros(C))
    p |= dict(gamma_z=np.ones(H), beta_z=np.zeros(H))
    return p | dict(gamma_h=np.ones(H), beta_h=np.zeros(H))


def norm(r):  # mean 0, variance 1
    return (r - r.mean(-1, keepdims=True)) / np.sqrt(r.var(-1, keepdims=True) + 1e-6)


def norm_back(d, r):  # only what changes neither mean nor variance comes through
    d = d - d.mean(-1, keepdims=True) - norm(r) * (d * norm(r)).mean(-1, keepdims=True)
    return d / np.sqrt(r.var(-1, keepdims=True) + 1e-6)


def length(v):
    return np.sqrt(np.maximum((v * v).sum(-1, keepdims=True), 1e-12))


def unit_back(du, v):  # u = v / length(v): only what goes across v turns it
    u, held = v / length(v), length(v) == 1e-6  # held: then the length is a constant
    return (du - np.where(held, 0, u * (du * u).sum(-1, keepdims=True))) / length(v)


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def forward(p, x):
    h, A, kept = np.zeros((x.shape[1], len(p["b_h"]))), np.zeros_like(p["M"]), []
    for x_t in x:  # (B, D)
        r = np.maximum(x_t @ p["W_z"] + p["b_z"], 0)  # (B, H)
        z = p["gamma_z"] * norm(r) + p["beta_z"]  # (B, H) (1) cue: a code of the input
        M_eff = p["M"] + alpha * A  # (N, H) (2) memory: what was learned, what was written
        u, U = z / length(z), M_eff / length(M_eff)  # (B, H), (N, H)
        s = u @ U.T  # (B, N) (3) how well each slot matches the cue
        a = softmax(s / tau)  # (B, N) (4) retrieval weights
        m = a @ M_eff  # (B, H) (5) what is recalled
        v = np.concatenate((z, m, h), axis=1)  # (B, 3H)
        c = np.maximum(v @ p["W_c"] + p["b_c"], 0)  # (B, 3H) (6) integration
        q = np.maximum(c @ p["W_h"] + p["b_h"], 0)  # (B, H)
        h = p["gamma_h"] * norm(q) + p["beta_h"]  # (B, H) (7) hidden state
        D_t = a.T @ z / len(z)  # (N, H) (8) what fires together
        A = np.clip((1 - eta) * A + eta * D_t, -clip, clip)  # (N, H) (9) wires together
        kept.append((x_t, r, z, M_eff, u, U, a, v, c, q, A))
    return h @ p["W_y"] + p["b_y"], h, kept  # (B, C) logits


def backward(p, dlogits, h, kept):
    g = {k: np.zeros_like(w) for k, w in p.items()}
    g["W_y"], g["b_y"] = h.T @ dlogits, dlogits.sum(0)
    dh, dA = dlogits @ p["W_y"].T, np.zeros_like(p["M"])  # (B, H), (N, H)
    for x_t, r, z, M_eff, u, U, a, v, c, q, A in reversed(kept):
        dA = np.where(abs(A) < clip, dA, 0)  # (N, H) (9) what is clipped does not move
        dD, dA = eta * dA, (1 - eta) * dA  # (N, H) (9) dA to step t - 1
        da, dz = z @ dD.T / len(z), a @ dD / len(z)  # (B, N), (B, H) (8)
        dgamma_h, dbeta_h = (dh * norm(q)).sum(0), dh.sum(0)  # (H,) (7)
        dq = norm_back(dh * p["gamma_h"], q) * (q > 0)  # (B, H) (7)
        dc = dq @ p["W_h"].T * (c > 0)  # (B, 3H) (7) to c, (6)
        dz_c, dm, dh = np.split(dc @ p["W_c"].T, 3, axis=1)  # (B, H) (6) dh to step t - 1
        da += dm @ M_eff.T  # (B, N) (5)
        ds = a * (da - (da * a).sum(-1, keepdims=True)) / tau  # (B, N) (4)
        dz += dz_c + unit_back(ds @ U, z)  # (B, H) (3)
        dM_eff = a.T @ dm + unit_back(ds.T @ u, M_eff)  # (N, H) (5), (3)
        dA += alpha * dM_eff  # (N, H) (2) to step t - 1
        dgamma_z, dbeta_z = (dz * norm(r)).sum(0), dz.sum(0)  # (H,) (1)
        dr = norm_back(dz * p["gamma_z"], r) * (r > 0)  # (B, H) (1)
        step = dict(
            W_z=x_t.T @ dr, b_z=dr.sum(0), gamma_z=dgamma_z, beta_z=dbeta_z, M=dM_eff
        )
        step |= dict(W_c=v.T @ dc, b_c=dc.sum(0), W_h=c.T @ dq, b_h=dq.sum(0))
        for k, dw in (step | dict(gamma_h=dgamma_h, beta_h=dbeta_h)).items():
            g[k] += dw  # all steps use the same weights
    return g


def loss_and_grads(p, x, y):
    logits, h, kept = forward(p, x)
    P, right = softmax(logits), (np.arange(len(y)), y)  # (B, C)
    loss = -np.log(P[right]).mean()
    P[right] -= 1  # now B times the gradient at the logits
    return loss, backward(p, P / len(y), h, kept)


def adam(p, g, m, v, t, rate, b1=0.9, b2=0.999):
    rate *= (1 - b2**t) ** 0.5 / (1 - b1**t)  # m and v begin at 0
    for k in p:
        d = g[k] / max(1, np.linalg.norm(g[k]))  # no gradient longer than 1
        m[k] = b1 * m[k] + (1 - b1) * d
        v[k] = b2 * v[k] + (1 - b2) * d * d
        p[k] -= rate * m[k] / (np.sqrt(v[k]) + 1e-7)


def check(rng, eps=1e-6):
    p = {k: w + 0.3 * rng.normal(size=w.shape) for k, w in init(rng, 3, 5, 4, 3).items()}
    x, y, errors = rng.normal(size=(14, 2, 3)), rng.integers(0, 3, 2), []  # (9) clips, too
    for k, dw in loss_and_grads(p, x, y)[1].items():
        u = rng.normal(size=dw.shape) / dw.size**0.5  # a random direction
        up, down = (loss_and_grads({**p, k: p[k] + e * u}, x, y)[0] for e in (eps, -eps))
        errors.append(abs((up - down) / (2 * eps) - (dw * u).sum()) / np.linalg.norm(dw))
    return np.max(errors)


def main(images=4000, epochs=8, B=32, rate=2e-3):
    rng = np.random.default_rng(0)
    print(f"largest relative error of a gradient: {check(rng):.0e}")
    digits = np.load(Path(__file__).resolve().parents[1] / "data" / "mnist_5k.npz")
    x, y = np.moveaxis(digits["images"].reshape(-1, 14, 56) / 255, 1, 0), digits["labels"]
    p, t, steps = init(rng, D=56, H=64, N=32, C=10), 0, images // B * epochs  # D: two rows
    m, v = ({k: np.zeros_like(w) for k, w in p.items()} for _ in range(2))
    for epoch in range(epochs):
        for batch in rng.permutation(images)[: images // B * B].reshape(-1, B):
            t += 1
            loss, g = loss_and_grads(p, x[:, batch], y[batch])
            adam(p, g, m, v, t, rate * (1 - t / steps))  # ever smaller steps
        accuracy = (forward(p, x[:, 4000:])[0].argmax(1) == y[4000:]).mean()
        print(f"epoch {epoch + 1}: last loss {loss:.3f}, test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
