"""PyTorch: the Engram cell line by line from its equations, and nn.RNN, nn.GRU, nn.LSTM for the baselines.

variant: "eager", "compile" (torch.compile of the whole model, its loop over time unrolled) or "graphs" (the same with
mode="reduce-overhead", CUDA graphs). Adam is PyTorch's fused one, its fastest. Equation (1) is done for all steps at
once, as anybody would who sees that it needs no past. On a card nn.RNN, nn.GRU and nn.LSTM are cuDNN's, in float32 as
ours is, not TF32.
"""

import platform

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# Where gates stand in PyTorch's order, in ours: RNN one; GRU ours z r n, theirs r z n; LSTM i f g o in both.
ORDER = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 1, 2, 3]}


def versions(problem):
    known = {"python": platform.python_version(), "torch": torch.__version__}
    if problem.device == "cuda":
        known |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return known


def build(problem, variant, threads):
    torch.set_num_threads(threads)
    if problem.device == "cuda" and not torch.cuda.is_available():
        raise ImportError(f"PyTorch {torch.__version__} finds no CUDA device; install its CUDA build")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if problem.kind == "stream":
        return Streaming(problem)
    return Training(problem, variant)


class Engram(nn.Module):
    """SPEC's (1) to (9) and a linear head on the last h."""

    def __init__(self, model):
        super().__init__()
        self.hyper = model.cells[0]
        self.cell = nn.ParameterDict({name: torch.tensor(value) for name, value in model.layer_params(0).items()})
        self.W = nn.Parameter(torch.tensor(model.params["head.W"]))
        self.b = nn.Parameter(torch.tensor(model.params["head.b"]))

    def forward(self, x, h, A, noise):
        p = dict(self.cell.items())
        z, z_unit = cue(p, x)
        for t in range(len(x)):
            h, A = step(self.hyper, p, z[t], z_unit[t], h, A, noise[t])
        return torch.addmm(self.b, h, self.W)

    def given(self, x, draw):
        """h_0, A_0 and the trace noise for x (T, B, D), by draw = torch.randn or torch.zeros."""
        hyper, (steps, batch, _) = self.hyper, x.shape
        like = {"dtype": x.dtype, "device": x.device}
        h = hyper.initial_scale * draw(batch, hyper.hidden, **like)
        A = hyper.initial_scale * draw(hyper.slots, hyper.hidden, **like)
        return h, A, hyper.trace_noise * draw(steps, hyper.slots, hyper.hidden, **like)

    def grads(self):
        named = {f"0.{name}": value for name, value in self.cell.items()} | {"head.W": self.W, "head.b": self.b}
        return {name: value.grad.cpu().numpy() for name, value in named.items()}


def cue(p, x):
    z = F.layer_norm(F.relu(x @ p["W_z"] + p["b_z"]), p["b_z"].shape, p["gamma_z"], p["beta_z"], 1e-6)  # (1)
    return z, F.normalize(z, dim=-1, eps=1e-6)  # |z| held at 1e-6 is |z|^2 held at 1e-12


def step(hyper, p, z, z_unit, h, A, noise):
    eta = hyper.hebbian_rate
    M_eff = p["M"] + hyper.trace_scale * A  # (2)
    s = z_unit @ F.normalize(M_eff, dim=-1, eps=1e-6).T  # (3)
    a = F.softmax(s / hyper.tau, dim=-1)  # (4)
    m = a @ M_eff  # (5)
    c = F.relu(torch.addmm(p["b_c"], torch.cat((z, m, h), -1), p["W_c"]))  # (6)
    r = F.relu(torch.addmm(p["b_h"], c, p["W_h"]))
    h = F.layer_norm(r, p["b_h"].shape, p["gamma_h"], p["beta_h"], 1e-6)  # (7)
    D = a.T @ z / len(z)  # (8)
    A = ((1 - eta) * A + eta * (D + noise)).clamp(-hyper.trace_clip, hyper.trace_clip)  # (9)
    return h, A


class Baseline(nn.Module):
    """Layers of nn.RNN, nn.GRU or nn.LSTM, and a linear head on the last h."""

    def __init__(self, model, kind):
        super().__init__()
        self.order, self.cells, self.layers = ORDER[kind], model.cells, nn.ModuleList()
        for i, cell in enumerate(model.cells):
            p, inputs = model.layer_params(i), model.inputs if i == 0 else model.cells[i - 1].hidden
            layer = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind](inputs, cell.hidden)
            biases = [p[name] for name in cell.biases]
            layer = layer.to(torch.tensor(p["W_x"]).dtype)
            with torch.no_grad():
                layer.weight_ih_l0[...] = self._theirs(p["W_x"])
                layer.weight_hh_l0[...] = self._theirs(p["W_h"])
                layer.bias_ih_l0[...] = self._theirs(biases[0])
                layer.bias_hh_l0[...] = self._theirs(biases[1]) if len(biases) > 1 else 0
            self.layers.append(layer)
        self.W = nn.Parameter(torch.tensor(model.params["head.W"]))
        self.b = nn.Parameter(torch.tensor(model.params["head.b"]))

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        return torch.addmm(self.b, x[-1], self.W)

    def given(self, x, draw):
        return ()  # starts at zero

    def _theirs(self, ours):
        """(G, D, H) to (G H, D), or (G, H) to (G H)."""
        gates = torch.tensor(ours)[self.order]
        return gates.reshape(-1) if gates.ndim == 2 else gates.transpose(1, 2).reshape(-1, gates.shape[1])

    def _ours(self, theirs):
        """The inverse of `_theirs`; `argsort` inverts a permutation."""
        gates = theirs.grad.reshape(len(self.order), -1, *theirs.shape[1:]).cpu().numpy()
        gates = gates[np.argsort(self.order)]
        return gates.swapaxes(1, 2) if gates.ndim == 3 else gates

    def grads(self):
        found = {"head.W": self.W.grad.cpu().numpy(), "head.b": self.b.grad.cpu().numpy()}
        for i, (cell, layer) in enumerate(zip(self.cells, self.layers, strict=True)):
            found |= {f"{i}.W_x": self._ours(layer.weight_ih_l0), f"{i}.W_h": self._ours(layer.weight_hh_l0)}
            biases = zip(cell.biases, (layer.bias_ih_l0, layer.bias_hh_l0), strict=False)
            found |= {f"{i}.{name}": self._ours(bias) for name, bias in biases}
        return found


class Training:
    """One step of training; each gradient is clipped by its own norm, as Keras' clipnorm."""

    def __init__(self, problem, variant):
        self.problem, self.variant = problem, variant
        self.net, self.call, self.x, self.y = self._network("float32")
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, eps=1e-7, fused=True)

    def _network(self, dtype):
        model = self.problem.model(dtype)
        net = Engram(model) if self.problem.cell == "engram" else Baseline(model, self.problem.cell)
        net, mode = net.to(self.problem.device), "reduce-overhead" if self.variant == "graphs" else None
        call = net if self.variant == "eager" else torch.compile(net, dynamic=False, mode=mode)
        return net, call, *(torch.tensor(part, device=self.problem.device) for part in self.problem.data(dtype))

    def answers(self, dtype):
        if self.variant != "eager" and dtype == "float64":
            return None  # the same port as "eager", and compiling takes a minute
        net, call, x, y = self._network(dtype)
        loss = F.cross_entropy(call(x, *net.given(x, torch.zeros)), y)
        loss.backward()
        return {"loss": loss.item(), **net.grads()}

    def run(self):
        self.optimizer.zero_grad()
        out = self.call(self.x, *self.net.given(self.x, torch.randn))
        F.cross_entropy(out, self.y).backward()
        for p in self.net.parameters():
            p.grad.div_(p.grad.norm().clamp(min=1.0))
        self.optimizer.step()
        if self.problem.device == "cuda":
            torch.cuda.synchronize()


class Streaming:
    """Forward, one time step at a time, without a graph."""

    def __init__(self, problem):
        self.problem = problem
        self.net, self.x = self._network("float32")

    def _network(self, dtype):
        return Engram(self.problem.model(dtype)), torch.tensor(self.problem.data(dtype)[0])

    def answers(self, dtype):
        h, A = self._stream(*self._network(dtype))
        return {"h": h.numpy(), "A": A.numpy()}

    def run(self):
        self._stream(self.net, self.x)

    @torch.inference_mode()
    def _stream(self, net, x):
        p, hyper = dict(net.cell.items()), net.hyper
        h, A = x.new_zeros(x.shape[1], hyper.hidden), x.new_zeros(hyper.slots, hyper.hidden)
        noise = torch.zeros_like(A)
        for x_t in x:
            z, z_unit = cue(p, x_t)
            h, A = step(hyper, p, z, z_unit, h, A, noise)
        return h, A
