"""Three claims about Hebbian traces, each held against a number that could have come out otherwise, and two baselines.

    structured   share of |A|^2 that one outer product holds, and that one row common to all slots holds
    sparse       share of entries |A| < 0.01, as the paper counts; Hoyer's sparsity, which has no scale; slots recalled
    stable       cosine of the trace with that of the epoch before, and with that before training

The baselines: the trace that the same network leaves before it is trained, and normal noise of the trained trace's root
mean square. The paper (arXiv 2507.21474) shows its traces without either. Functions take traces (K, N, H) after epochs
0 to K - 1, untrained first, as `HebbianTraceMonitor` keeps them. Letters: K traces, N memory slots, H hidden units.
"""

from itertools import pairwise

import numpy as np

from .plots import COLORS, draw_map, finish, floats, line, panels, percent, sheet, signed_map

SMALL = 0.01  # what the paper counts as small
EPOCH = "epoch (0: untrained)"


def compared(traces):
    """{"trained", "untrained", "random": (N, H)}: the last trace, the first, and noise of the last one's scale."""
    traces = floats(traces, "traces", "KNH")
    rng = np.random.default_rng((0, 1))  # not the stream that a model's first weights came from: they would agree
    noise = rng.standard_normal(traces[-1].shape) * np.sqrt((traces[-1] ** 2).mean())
    return {"trained": traces[-1], "untrained": traces[0], "random": noise}


def outer_products(A):
    """Shares of |A|^2 in each outer product of the best sum of them, (min(N, H),): squared singular values."""
    squares = np.linalg.svd(A, compute_uv=False) ** 2
    return squares / (squares.sum() or 1)


def common_row(A):
    """Share of |A|^2 in the row that all slots have in common, their mean: 1 if all rows are alike."""
    return len(A) * (A.mean(0) ** 2).sum() / ((A * A).sum() or 1)


def hoyer(A):
    """Hoyer's sparsity (2004): 0 if all entries are equally large, 1 if one alone is not zero; 0.2 for normal noise."""
    root, norm = A.size**0.5, np.linalg.norm(A)
    return (root - abs(A).sum() / norm) / (root - 1) if norm and A.size > 1 else 0.0


def cosine(A, B):
    """Cosine of two traces as vectors; 0 where one of them is zero."""
    return (A * B).sum() / (np.linalg.norm(A) * np.linalg.norm(B) or 1)


def table(traces, statistics):
    """Markdown: a row per measure, a column per trace. statistics: K dicts, with "effective_slots" in each."""
    three, traces = compared(traces), np.asarray(traces, float)
    if len(statistics) != len(traces):
        raise ValueError(f"statistics: expected {len(traces)}, one per trace, got {len(statistics)}")

    def row(claim, words, measure, form):
        return claim, words, *(format(measure(A), form) for A in three.values())

    slots = [f"{statistics[k]['effective_slots']:.1f}" for k in (-1, 0)]
    rows = [
        row("structured", "share of its squares in one outer product", lambda A: outer_products(A)[0], ".1%"),
        row("", "... in one row that all slots have in common", common_row, ".1%"),
        row("sparse", f"share of entries below {SMALL}", lambda A: (abs(A) < SMALL).mean(), ".1%"),
        row("", "Hoyer's sparsity, from 0 to 1", hoyer, ".2f"),
        ("", f"slots that take part in a recall, of {traces.shape[1]}", *slots, "-"),
        row("stable", "cosine with the trained trace", lambda A: cosine(A, three["trained"]), ".2f"),
    ]
    if before := [cosine(A, B) for A, B in pairwise(traces[1:])]:
        last = f"{min(before):.2f} to {max(before):.2f}"
        rows.append(("", "... with the epoch before, from epoch 2 on", last, "-", "-"))
    return markdown(("claim", "measured", f"after {len(traces) - 1} epochs", "untrained", "random"), rows)


def markdown(head, rows):
    """A table of words as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def structure(traces):
    """Are traces structured? Three maps, how many outer products they need, and how much all slots have in common."""
    top, foot = sheet(8, 5.2).add_gridspec(2, 1, height_ratios=(1.2, 1))
    maps, (lines, bars) = top.subgridspec(1, 3).subplots(), foot.subgridspec(1, 2, width_ratios=(1.4, 1)).subplots()
    for i, (ax, (name, A)) in enumerate(zip(maps, compared(traces).items(), strict=True)):
        scale, common, shares = np.sqrt((A * A).mean()) or 1, common_row(A), outer_products(A)[:8]
        image = signed_map(ax, A / scale, f"{name}, rms {scale:.2g}", 3)
        ax.label_outer()
        line(lines, i, range(1, len(shares) + 1), shares, name)
        bars.barh(name, common, color=COLORS[i])
        inside = {"ha": "right", "color": "white"} if common > 0.5 else {"ha": "left", "color": "black"}
        bars.text(common, i, f" {common:.1%} ", va="center", **inside)
    lines.figure.colorbar(image, ax=maps, label="A / its root mean square", extend="both")
    finish(lines, "In each outer product, best first", "outer product", "share of |A|²", "size")
    lines.yaxis.set_major_formatter(percent)
    lines.legend(frameon=False, handlelength=3, loc="center right", bbox_to_anchor=(1, 0.45))
    bars.set(title="In one row common to all slots", xlabel="share of |A|²", xlim=(0, 1.02), ylim=(2.6, -0.6))
    bars.xaxis.set_major_formatter(percent)
    return lines.figure


def sparsity(traces, statistics):
    """Are traces sparse, and is recall? How many entries are small, a measure without scale, and slots per recall."""
    three, (sizes, measure, recall) = compared(traces), panels(3, (8, 3.2), (1.5, 1, 1))
    for i, (name, A) in enumerate(three.items()):
        small = np.maximum(np.sort(abs(A), axis=None), 1e-6)
        sizes.plot(small, np.arange(1, A.size + 1) / A.size, ("-", "--", "-.")[i], color=COLORS[i], label=name)
    sizes.axvline(SMALL, color="grey", ls=":")
    sizes.text(SMALL, 0.02, f" {SMALL}", color="dimgrey")
    finish(sizes, "Entries below a size", "|A| (no unit)", "share of entries", "share", legend=True)
    sizes.set(xscale="log", xlim=(1e-5, None))
    epochs, level, slots = range(len(traces)), hoyer(three["random"]), np.shape(traces)[1]
    line(measure, 0, epochs, [hoyer(A) for A in np.asarray(traces, float)], "trace")
    measure.axhline(level, color=COLORS[2], ls="-.")
    measure.text(epochs[-1], level + 0.015, "random", color=COLORS[2], ha="right")
    finish(measure, "Hoyer's sparsity", EPOCH, ylim=(0, 1))
    line(recall, 0, epochs, [each["effective_slots"] for each in statistics], "recall")
    recall.axhline(slots, color="grey", ls=":")
    finish(recall, f"Slots per recall, of {slots}", EPOCH, "effective slots", ylim=(0, 1.1 * slots))
    return sizes.figure


def stability(traces):
    """Are traces stable over training? Cosines of every two, and with the one before and the first as lines."""
    traces = floats(traces, "traces", "KNH")
    cosines = np.array([[cosine(A, B) for A in traces] for B in traces])
    image, lines = panels(2, (8, 3.4), (1, 1.3))
    lowest, heading = cosines.min(), "Cosine of every two traces"
    heat = draw_map(image, cosines, heading, EPOCH, "epoch", cmap="cividis", vmin=min(0, lowest), vmax=1)
    image.set_aspect("equal")
    image.figure.colorbar(heat, ax=image)
    noise, epochs = compared(traces)["random"], range(len(traces))
    line(lines, 0, epochs[1:], cosines.diagonal(1), "with the epoch before")
    line(lines, 1, epochs, cosines[0], "with the untrained")
    line(lines, 2, epochs, [cosine(A, noise) for A in traces], "with random noise")
    finish(lines, "Cosine of a trace", EPOCH, ylim=(min(-0.1, lowest), 1.05))
    lines.legend(frameon=False, handlelength=3, loc="lower left", bbox_to_anchor=(0, 0.12))
    return image.figure
