"""Three claims about Hebbian traces, each held against a number that could have come out otherwise, and two baselines.

    structured   share of |A|^2 that one outer product holds, and that one row common to all slots holds
    sparse       share of entries |A| < 0.01, as the paper counts; Hoyer's sparsity, which has no scale; slots recalled
    stable       cosine of the trace with that of the epoch before, and with that before training

The baselines: the trace that the same network leaves before it is trained, and normal noise of the trained trace's root
mean square. The paper (arXiv 2507.21474) shows its traces without either. Functions take traces (K, N, H) after epochs
0 to K - 1, untrained first, as `HebbianTraceMonitor` keeps them. Letters: K traces, N memory slots, H hidden units.
"""

import numpy as np

from .plots import COLORS, _axes, _line, _logarithmic, _matplotlib, _percent, _signed, _traces, _whole_numbers

NAMES = ("trained", "untrained", "random")
SMALL = 0.01  # what the paper counts as small


def compared(traces, seed=0):
    """{"trained", "untrained", "random": (N, H)}: the last trace, the first, and noise of the last one's scale."""
    traces = _traces(traces, None)[0]
    rng = np.random.default_rng((seed, 1))  # not the stream that a model's first weights came from: they would agree
    noise = rng.standard_normal(traces[-1].shape)
    return dict(zip(NAMES, (traces[-1], traces[0], noise * np.sqrt((traces[-1] ** 2).mean())), strict=True))


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


def measure(traces, statistics, seed=0):
    """The numbers behind the figures, as plain JSON types. statistics: K dicts, with "effective_slots" in each."""
    three, K = compared(traces, seed), len(traces)
    traces = np.asarray(traces, float)
    if len(statistics) != K:
        raise ValueError(f"statistics: expected {K}, one per trace, got {len(statistics)}")

    def each(question):
        return {name: _digits(question(A)) for name, A in three.items()}

    slots = {"trained": statistics[-1]["effective_slots"], "untrained": statistics[0]["effective_slots"]}
    return {
        "epochs": K - 1,
        "slots": traces.shape[1],
        "one_outer_product": each(lambda A: outer_products(A)[0]),
        "common_row": each(common_row),
        "share_small": each(lambda A: (abs(A) < SMALL).mean()),
        "hoyer": each(hoyer),
        "effective_slots": {name: _digits(value) for name, value in slots.items()},
        "cosine_with_epoch_before": [_digits(cosine(A, B)) for A, B in zip(traces[1:], traces, strict=False)],
        "cosine_with_trained": each(lambda A: cosine(A, three["trained"])),
        "cosine_with_untrained": [_digits(cosine(A, traces[0])) for A in traces],
    }


def table(numbers):
    """Markdown: a row per measure, a column per trace, from what `measure` returned."""
    before, rows = numbers["cosine_with_epoch_before"][1:], []
    for claim, words, name, form in (
        ("structured", "share of its squares in one outer product", "one_outer_product", ".1%"),
        ("", "... in one row that all slots have in common", "common_row", ".1%"),
        ("sparse", f"share of entries below {SMALL}", "share_small", ".1%"),
        ("", "Hoyer's sparsity, from 0 to 1", "hoyer", ".2f"),
        ("", f"slots that take part in a recall, of {numbers['slots']}", "effective_slots", ".1f"),
        ("stable", "cosine with the trained trace", "cosine_with_trained", ".2f"),
    ):
        values = [format(numbers[name][each], form) if each in numbers[name] else "-" for each in NAMES]
        rows.append((claim, words, *values))
    if before:
        last = f"{min(before):.2f} to {max(before):.2f}"
        rows.append(("", "... with the epoch before, from epoch 2 on", last, "-", "-"))
    head = ("claim", "measured", f"after {numbers['epochs']} epochs", "untrained", "random")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def structure(traces, seed=0):
    """Are traces structured? Three maps, how many outer products they need, and how much all slots have in common."""
    figure = _matplotlib().figure.Figure(figsize=(8, 5.2), layout="constrained")
    top, foot = figure.add_gridspec(2, 1, height_ratios=(1.2, 1))
    maps, (lines, bars) = top.subgridspec(1, 3).subplots(), foot.subgridspec(1, 2, width_ratios=(1.4, 1)).subplots()
    three = compared(traces, seed)
    for i, (ax, (name, A)) in enumerate(zip(maps, three.items(), strict=True)):
        scale, common, shares = np.sqrt((A * A).mean()) or 1, common_row(A), outer_products(A)[:8]
        image = _signed(ax, A / scale, f"{name}, rms {scale:.2g}", 3)
        ax.label_outer()
        _line(lines, i, range(1, len(shares) + 1), shares, name)
        bars.barh(i, common, color=COLORS[i])
        inside = {"ha": "right", "color": "white"} if common > 0.5 else {"ha": "left", "color": "black"}
        bars.text(common, i, f" {common:.1%} ", va="center", **inside)
    figure.colorbar(image, ax=maps, label="A / its root mean square", extend="both")
    lines.set(title="In each outer product, best first", xlabel="outer product", ylabel="share of |A|²")
    bars.set(title="In one row common to all slots", xlabel="share of |A|²", xlim=(0, 1.02), ylim=(2.6, -0.6))
    bars.set_yticks(range(3), NAMES)
    bars.xaxis.set_major_formatter(_percent)
    _logarithmic(lines)
    lines.yaxis.set_major_formatter(_percent)
    _whole_numbers(lines.xaxis)
    lines.legend(frameon=False, handlelength=3, loc="center right", bbox_to_anchor=(1, 0.45))
    return figure


def sparsity(traces, statistics, seed=0):
    """Are traces sparse, and is recall? How many entries are small, a measure without scale, and slots per recall."""
    three, (sizes, measure, recall) = compared(traces, seed), _axes(3, (8, 3.2), (1.5, 1, 1))
    for i, (name, A) in enumerate(three.items()):
        small = np.maximum(np.sort(abs(A), axis=None), 1e-6)
        sizes.plot(small, np.arange(1, A.size + 1) / A.size, ("-", "--", "-.")[i], color=COLORS[i], label=name)
    sizes.axvline(SMALL, color="grey", ls=":")
    sizes.text(SMALL, 0.02, f" {SMALL}", color="dimgrey")
    sizes.set(xscale="log", xlim=(1e-5, None), xlabel="|A| (no unit)", ylabel="share of entries")
    sizes.set_title("Entries below a size")
    sizes.yaxis.set_major_formatter(_percent)
    sizes.legend(frameon=False, handlelength=3)
    epochs = range(len(traces))
    _line(measure, 0, epochs, [hoyer(A) for A in np.asarray(traces, float)], "trace")
    level = hoyer(three["random"])
    measure.axhline(level, color=COLORS[2], ls="-.")
    measure.text(epochs[-1], level + 0.015, "random", color=COLORS[2], ha="right")
    measure.set(title="Hoyer's sparsity", xlabel="epoch (0: untrained)", ylim=(0, 1))
    slots = np.shape(traces)[1]
    _line(recall, 0, epochs, [each["effective_slots"] for each in statistics], "recall")
    recall.axhline(slots, color="grey", ls=":")
    recall.set(title=f"Slots per recall, of {slots}", xlabel="epoch (0: untrained)", ylabel="effective slots")
    recall.set_ylim(0, 1.1 * slots)
    for ax in (measure, recall):
        _whole_numbers(ax.xaxis)
    return sizes.figure


def stability(traces, seed=0):
    """Are traces stable over training? Cosines of every two, and with the one before and the first as lines."""
    traces = _traces(traces, None)[0]
    cosines = np.array([[cosine(A, B) for A in traces] for B in traces])
    image, lines = _axes(2, (8, 3.4), (1, 1.3))
    heat = image.imshow(cosines, cmap="cividis", vmin=min(0, cosines.min()), vmax=1)
    image.figure.colorbar(heat, ax=image)
    image.set(title="Cosine of every two traces", xlabel="epoch (0: untrained)", ylabel="epoch")
    noise, epochs = compared(traces, seed)["random"], range(len(traces))
    _line(lines, 0, epochs[1:], cosines.diagonal(1), "with the epoch before")
    _line(lines, 1, epochs, cosines[0], "with the untrained")
    _line(lines, 2, epochs, [cosine(A, noise) for A in traces], "with random noise")
    lines.set(title="Cosine of a trace", xlabel="epoch (0: untrained)", ylim=(min(-0.1, cosines.min()), 1.05))
    lines.legend(frameon=False, handlelength=3, loc="lower left", bbox_to_anchor=(0, 0.12))
    _whole_numbers(image.xaxis, image.yaxis, lines.xaxis)
    return image.figure


def _digits(value):
    return float(f"{float(value):.6g}")
