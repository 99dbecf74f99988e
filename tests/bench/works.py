"""What the bench times: every work, who takes part in it, and who is compared with whom."""

from typing import NamedTuple

from .problem import Problem


class Side(NamedTuple):
    """A competitor: its name in the table, whose interpreter runs it, its file here, its variant, its work."""

    name: str
    library: str
    module: str
    variant: str
    problem: Problem

    def units(self, unit):
        """How many of a work's unit one run of this side is."""
        sample_steps = self.problem.steps * self.problem.batch
        return {"step": 1, "time step": self.problem.steps, "1000 sample-steps": sample_steps / 1000}[unit]


class Work(NamedTuple):
    """Sides that take turns; `pairs` (row's name, ours, peer) by position; `unit`, what a time in the table is of.

    The last side is a matrix product alone: the speed of this machine, in the same minutes.
    """

    sides: list
    pairs: list
    unit: str = "step"

    def small(self):
        """The same work at sizes that take no time."""
        return self._replace(sides=[side._replace(problem=side.problem.small()) for side in self.sides])


TORCH, JIT = ("torch", "torch_cells", "eager"), ("jax", "jax_cells", "jit")
COMPILED, KERAS = ("torch", "torch_cells", "compile"), ("tensorflow", "tensorflow_cells", "train_on_batch")


def ours(name, **sizes):
    return Side(name, "enn_np", "numpy_cells", "", Problem(**sizes))


PRODUCT = ours("matrix product", kind="gemm", steps=2048)
CARD_PRODUCT = ours("matrix product", kind="gemm", steps=8192, device="cuda")


def against(name, peers, unit="step", **sizes):
    """A work of our side against peers, {name: (library, module, variant)}."""
    sides = [ours("enn_np", **sizes)] + [Side(peer, *how, Problem(**sizes)) for peer, how in peers.items()]
    return Work(sides, [(name, 0, i) for i in range(1, len(sides))], unit)


def growth(letter, size, values):
    """Our own step at growing T or B: time per sample-step, each against the smallest."""
    sides = [ours(f"enn_np {letter}={value}", **{size: value}) for value in values]
    return Work(sides, [(f"growth {letter}={values[i]}", i, 0) for i in range(1, len(values))], "1000 sample-steps")


def baseline(cell, torch_name):
    peers = {torch_name: TORCH, "Keras": KERAS}
    return against(cell, peers, cell=cell, hidden=(128, 64))


def recompute(name, **sizes):
    """Forward and backward of a long run in segments, against its whole tape."""
    sides = [ours("enn_np, recomputing", kind="recompute", segments=28, **sizes)]
    sides.append(ours("enn_np, whole tape", kind="recompute", **sizes))
    return Work(sides, [(name, 0, 1)])


def ranks(name, peers, **sizes):
    """Half a batch in each of two processes, where the others have two threads, against these and one process."""
    work = against(name, peers, **sizes)
    sides = [Side("enn_np, ranks", "enn_np", "numpy_cells", "ranks", Problem(**sizes)), *work.sides[1:]]
    sides.append(ours("enn_np, one process", **sizes))
    return Work(sides, [(name, 0, i) for i in range(1, len(sides))])


def card_works():
    """The works on a card: the paper's MNIST sizes, where launches decide, and large ones, where products do."""
    torch = {name: ("torch", "torch_cells", name) for name in ("eager", "compile", "graphs")}
    sizes = {"": {}, "-large": {"hidden": (1024,), "slots": 512, "batch": 512, "inputs": 1024}}
    named = {}
    for suffix, size in sizes.items():
        peers = {f"torch {name}": how for name, how in torch.items()}
        named[f"engram{suffix}"] = against(f"engram{suffix}", peers, device="cuda", **size)
        for cell in ("lstm", "gru", "rnn"):
            layers = {"hidden": (128, 64)} | size
            named[cell + suffix] = against(cell + suffix, {"cuDNN (torch)": TORCH}, cell=cell, device="cuda", **layers)
    return {name: work._replace(sides=[*work.sides, CARD_PRODUCT]) for name, work in named.items()}


def all_works(device="cpu"):
    """All works by name, at the paper's MNIST sizes or, "-wide", four times as many hidden units; on a card those of
    `card_works`."""
    if device == "cuda":
        return card_works()
    engram = {"torch eager": TORCH, "torch.compile": COMPILED, "JAX jit": JIT, "tensorflow-engram": KERAS}
    sample = [ours("enn_np", trace="sample"), ours("enn_np, one trace a batch")]
    sample.append(ours("enn_np, no clip", trace="sample", trace_clip=None))
    binding = [ours("enn_np", cell="binding"), ours("enn_np, the paper's cell")]
    named = {
        "engram": against("engram", engram),
        "lstm": baseline("lstm", "torch nn.LSTM"),
        "gru": baseline("gru", "torch nn.GRU"),
        "rnn": baseline("rnn", "torch nn.RNN"),
        "engram-sample": Work(sample, [("engram-sample", 0, 1), ("engram-sample without clip", 2, 1)]),
        "binding": Work(binding, [("binding", 0, 1)]),
        "streaming": against("streaming", {"torch eager": TORCH}, "time step", kind="stream", batch=1, steps=200),
        "growth-T": growth("T", "steps", (28, 112, 392, 784)),
        "growth-B": growth("B", "batch", (32, 128, 512)),
        "lstm-ranks": ranks("lstm-ranks", {"torch nn.LSTM": TORCH, "Keras": KERAS}, cell="lstm", hidden=(128, 64)),
        "gru-ranks": ranks("gru-ranks", {"torch nn.GRU": TORCH, "Keras": KERAS}, cell="gru", hidden=(128, 64)),
        "rnn-ranks": ranks("rnn-ranks", {"torch nn.RNN": TORCH, "Keras": KERAS}, cell="rnn", hidden=(128, 64)),
        "engram-ranks": ranks("engram-ranks", engram),
        "engram-sample-ranks": ranks("engram-sample-ranks", {}, trace="sample"),
        "binding-ranks": ranks("binding-ranks", {}, cell="binding"),
        "recompute": recompute("recompute T=784", steps=784),
        "engram-wide": against("engram H=512", engram, hidden=(512,)),
        "lstm-wide": against("lstm H=512", {"torch nn.LSTM": TORCH, "Keras": KERAS}, cell="lstm", hidden=(512,)),
    }
    return {name: work._replace(sides=[*work.sides, PRODUCT]) for name, work in named.items()}
