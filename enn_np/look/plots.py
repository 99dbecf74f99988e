"""Figures of training and of the memory: pure functions from NumPy arrays to a matplotlib Figure.

Each function returns a new Figure, 8 inches wide. The first call imports matplotlib, and none imports pyplot: no
backend is needed, no figure stays open. In a notebook, say `%matplotlib inline` once and end a cell with the figure.
Signed values are red and blue around a white zero, shares run from dark to bright (cividis). Lines differ in colour
(Okabe and Ito, 2008), dash and marker, so a print in grey can be read. A network has the same colour in all figures.
Bad input (rank, NaN, empty, unequal lengths) raises ValueError: it names the argument, what came and what was expected.

Letters: T time steps, N memory slots, H hidden units, K traces, W pixels in an input row, Q questions.
"""

import numpy as np

from ..checkpoint import spelled_out, whole
from ..checks import choice, float_array
from .monitor import slots_per_recall

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.")  # marker and dash of each colour
NETWORKS = {"Engram": 0, "RNN": 1, "GRU": 2, "LSTM": 3, "Binding": 4, "LEM": 5}  # its number of both, in all figures
UNITS, SLOTS, TRACE = "hidden unit (index)", "memory slot (index)", "trace A (no unit)"


def learning_curves(histories, metrics=("val_loss", "val_accuracy"), loss_unit="nats"):
    """One panel per metric, one line per model, over epochs.

    histories  model name -> {"loss", "accuracy", "val_loss", "val_accuracy": one number per epoch}, or -> a
               list of such runs: mean, and a band to the extremes; a run that ended early goes on with its last number
    metrics    keys to draw; a loss (in `loss_unit`) on a logarithmic axis, an accuracy (0 to 1) in per cent
    """
    if not histories or not metrics:
        raise ValueError(f"histories, metrics: expected at least one each, got {histories!r} and {metrics!r}")
    axes, colors = panels(len(metrics), (8, 3.4)), numbers(histories)
    for metric, ax in zip(metrics, axes, strict=True):
        _networks(ax, "histories", histories, metric, colors)
        kind = metric.removeprefix("val_").replace("_", " ")
        title = f"{'Validation' if metric.startswith('val_') else 'Training'} {kind}"
        finish(ax, title, "epoch", f"loss ({loss_unit})" if kind == "loss" else kind, kind, legend=ax is axes[-1])
    return axes[0].figure


def task_curves(tasks):
    """One panel per task, one line per network, over training steps: validation accuracy, or the loss of a regression.

    tasks  title -> network -> runs, each {"step", "val_accuracy" or "val_loss": one number per validation}; mean and
           band as above
    """
    if not tasks or not all(tasks.values()):
        raise ValueError(f"tasks: expected at least one, each with a network, got {tasks!r:.100}")
    axes, colors = panels(len(tasks), (8, 3.4)), numbers(name for networks in tasks.values() for name in networks)
    for (title, networks), ax in zip(tasks.items(), axes, strict=True):
        kind = "accuracy" if all("val_accuracy" in run for runs in networks.values() for run in runs) else "loss"
        _networks(ax, f"tasks[{title!r}]", networks, f"val_{kind}", colors, "step")
        limits = {"xlim": (0, None)} | ({"ylim": (0, 1.03)} if kind == "accuracy" else {})
        finish(ax, title, "training step", f"validation {kind}", kind, **limits)
    most = max(axes, key=lambda ax: len(ax.lines)).get_legend_handles_labels()
    columns = 3 if sum(len(name) + 9 for name in most[1]) > 90 else 6  # what does not fit is cut off
    axes[0].figure.legend(*most, loc="outside lower center", ncols=columns, frameon=False, handlelength=3)
    return axes[0].figure


def trace_heatmap(A, title="Hebbian trace"):
    """A trace A (N, H), slots x hidden units; the largest |A| ends the colour scale."""
    (ax,) = panels(1, (8, 3.8))
    ax.figure.colorbar(signed_map(ax, floats(A, "A", ("N", "H")), title), ax=ax, label=TRACE)
    return ax.figure


def trace_evolution(traces, labels=None, unit="epoch"):
    """Traces over training or over a sequence as maps on one colour scale, and the size |A| of each as lines.

    traces  (K, N, H)
    labels  K names or numbers, 1 to K without them; `unit` is what they count. Up to 6 maps, evenly spread over K
    """
    traces = floats(traces, "traces", "KNH")
    K = len(traces)
    labels = range(1, K + 1) if labels is None else labels
    if len(labels) != K:
        raise ValueError(f"labels: expected {K}, one per trace, got {len(labels)}")
    rows, columns = (1, K) if K < 4 else (2, min(K // 2, 3))
    top, foot = sheet(8, 2 + 2.2 * rows).add_gridspec(2, 1, height_ratios=(1.5 * rows, 1))
    maps, lines = top.subgridspec(rows, columns).subplots(squeeze=False).ravel(), foot.subgridspec(1, 1).subplots()
    picked = np.linspace(0, K - 1, len(maps)).round().astype(int)
    for ax, k in zip(maps, picked, strict=True):
        image = signed_map(ax, traces[k], f"{unit} {labels[k]}", abs(traces).max())
        ax.label_outer()
    lines.figure.colorbar(image, ax=maps, label=TRACE)
    for i, (name, reduce) in enumerate({"largest |A|": np.max, "mean |A|": np.mean}.items()):
        line(lines, i, range(K), reduce(abs(traces), (1, 2)), name)
    finish(lines, "Size of the trace", unit, "|A| (no unit)", "size", legend=True)
    lines.set_xticks(picked, [labels[k] for k in picked])
    return lines.figure


def retrieval_over_time(a, image=None):
    """What each time step recalled: weights a (T, N), time downwards, beside the input that was read.

    image  (T, W) numbers or (T, W, 3) colours, 0 to 1 or uint8: row t is the input of step t

    The colour bar marks 1/N, an even recall. At the right is the effective number of slots, exp(entropy): 1 to N.
    """
    a = floats(a, "a", ("T", "N"))
    T, N = a.shape
    if a.min() < 0 or abs(a.sum(-1) - 1).max() > 1e-3:
        got = f"a smallest one of {a.min():.3g} and sums from {a.sum(-1).min():.3g} to {a.sum(-1).max():.3g}"
        raise ValueError(f"a: expected weights from 0 that sum to 1 over the last axis, got {got}")
    ratios = [3, 1]
    if image is not None:
        floats(image, "image", (T, "W", 3)[: max(np.ndim(image), 2)])
        ratios = [min(max(3 * len(image[0]) / T, 1), 4), 3, 1]
    *inputs, weights, side = panels(len(ratios), (8, 3.6), ratios)
    for ax in inputs:
        draw_map(ax, image, "Input", "pixel (column)", "time step (input row)", cmap="gray")
    heat = draw_map(weights, a, "Retrieval weights", SLOTS, "time step", cmap="cividis")
    bar = side.figure.colorbar(heat, ax=[*inputs, weights, side], label="retrieval weight a (sum over slots: 1)")
    bar.ax.axhline(1 / N, color="red", lw=2)
    bar.ax.text(-0.3, 1 / N, "1/N", color="red", ha="right", va="center", transform=bar.ax.get_yaxis_transform())
    effective = slots_per_recall(a)  # (T,)
    side.plot(effective, range(T), color=COLORS[0])
    side.axvline(N, color="grey", ls=":")
    side.set(title=f"mean {effective.mean():.1f}", xlabel="effective slots", xlim=(0, N * 1.1), xticks=[0, N])
    side.set(ylim=(T - 0.5, -0.5), yticklabels=[])
    return side.figure


def arcs(words, questions, lengths, asked=None, title="Which past step wrote what each key recalls"):
    """From each question an arc to every step that wrote what it recalls, as thick and dark as that part is long.

    words: T strings, one a step; questions: Q strings, asked after them; lengths (Q, T): `attribution.written_lengths`;
    asked: index of the question that stands out, or None. Of a result: `arcs(*attribution.told(result["recalled"]))`.
    """
    lengths = floats(lengths, "lengths", (len(questions), len(words)))
    choice("asked", asked, (None, *range(len(questions))))
    (ax,) = panels(1, (8, 3.2))
    T, Q, turn = len(words), len(questions), np.linspace(0, np.pi, 100)
    shares = np.clip(lengths / (lengths.max() or 1), 0, 1)
    for q, s in np.argwhere(shares > 0.01):
        end, color = T + 1 + q, COLORS[1] if q == asked else COLORS[0]
        x, y = (s + end) / 2 + (end - s) / 2 * np.cos(turn), (end - s) / 2 * np.sin(turn)
        ax.plot(x, y, lw=0.5 + 2.5 * shares[q, s], color=color, alpha=shares[q, s], zorder=2 + (q == asked))
    places, found = (*range(T), *range(T + 1, T + 1 + Q)), () if asked is None else (shares[asked].argmax(), T + asked)
    for i, (place, word) in enumerate(zip(places, (*words, *questions), strict=True)):
        style = {"color": COLORS[1], "weight": "bold"} if i in found else {}
        ax.text(place, -0.4, word, ha="center", va="top", family="monospace", size=13, **style)
    for start, stop, name in ((0, T - 1, "read, one symbol a step"), (T + 1, T + Q, "asked, each by itself")):
        ax.plot((start - 0.4, stop + 0.4), (-2.1, -2.1), color="grey", lw=0.8)
        ax.text((start + stop) / 2, -2.4, name, ha="center", va="top", color="dimgrey", size=10)
    ax.set(title=title, xlim=(-0.8, T + Q + 0.8), ylim=(-3.6, (T + Q) / 2 + 0.5))
    ax.set_axis_off()
    return ax.figure


def save(figure, path):
    """Write a PNG (150 dpi) or SVG, by suffix, and its folder; equal figures, equal bytes. Return the path."""
    from matplotlib import rc_context

    path, metadata = spelled_out(path), {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
    if path.suffix not in metadata:
        raise ValueError(f"path: expected one that ends in .png or .svg, got {str(path)!r}")
    with rc_context({"svg.hashsalt": "enn_np"}), whole(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:], metadata=metadata[path.suffix])
    figure.set_layout_engine("none")  # it would move all by a fraction of a pixel at the next drawing
    return path


# ------------------------------------------------------------------------------------------------ how all are drawn


def sheet(width, height):
    """A new figure of so many inches."""
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def panels(count, size, ratios=None):
    """`count` axes side by side in a new figure of `size` inches."""
    return list(sheet(*size).subplots(1, count, squeeze=False, width_ratios=ratios).flat)


def finish(ax, title, x, y="", kind="", legend=False, **limits):
    """Title and labels of a panel whose x axis counts; its y axis shows shares, sizes or, by default, any numbers."""
    ax.set(title=title, xlabel=x, ylabel=y, **limits)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if kind in ("accuracy", "share"):
        ax.yaxis.set_major_formatter(percent)
    elif kind in ("loss", "size"):
        _logarithmic(ax)
    if legend:
        ax.legend(frameon=False, handlelength=3)


def numbers(networks):
    """{name: number of its line}: by NETWORKS and the name's first word; the others take free ones."""
    found = {}
    for name in sorted(dict.fromkeys(networks), key=lambda name: name not in NETWORKS):
        free = [i for i in range(len(COLORS)) if i not in found.values()] or [len(found)]
        found[name] = own if (own := NETWORKS.get(name.partition(" ")[0].strip(","))) in free else free[-1]
    return found


def line(ax, i, x, y, label):
    """Draw line number i, with hollow markers where the colours come again, and return its colour."""
    color, hollow = COLORS[i % len(COLORS)], {"markerfacecolor": "none"} if i >= len(COLORS) else {}
    ax.plot(x, y, LINES[i % len(COLORS)], color=color, markersize=4, label=label, **hollow)
    return color


def _networks(ax, name, networks, metric, colors, steps=None):
    """A line per network, the mean of its runs, and a band from the smallest to the largest, over epochs or `steps`."""
    for network, runs in networks.items():
        name_of, runs = f"{name}[{network!r}]", [runs] if isinstance(runs, dict) else runs
        values = _runs(name_of, runs, metric)  # (runs, epochs)
        x = _runs(name_of, runs, steps).max(0) if steps else range(1, values.shape[1] + 1)
        color = line(ax, colors[network], x, values.mean(0), network)
        ax.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)


def draw_map(ax, array, title, x, y, **settings):
    """A matrix as an image, with whole numbers at its edges."""
    image = ax.imshow(array, aspect="auto", **settings)
    ax.yaxis.get_major_locator().set_params(integer=True)
    finish(ax, title, x, y)
    return image


def signed_map(ax, A, title, limit=None):
    """A trace A (N, H) as an image from -limit to limit."""
    limit = limit or abs(A).max() or 1.0
    return draw_map(ax, A, title, UNITS, SLOTS, cmap="RdBu_r", vmin=-limit, vmax=limit)


def percent(x, _position=None):
    return f"{100 * x:.4g}%"


def _logarithmic(ax):
    """A logarithmic y axis with plain numbers, if all lines lie above zero; if not, one from their lowest."""
    lowest, highest = (pick(pick(line.get_ydata()) for line in ax.lines) for pick in (min, max))
    if lowest <= 0:
        ax.set_ylim(bottom=lowest)
    else:
        ax.set_yscale("log")
        # Over many decades matplotlib leaves out all ticks rather than those between the powers of ten.
        few = (1, 2, 5) if highest < 100 * lowest else (1,)
        ax.yaxis.get_major_locator().set_params(subs=(1, 2, 3, 5, 7) if highest < 10 * lowest else few)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")


# ----------------------------------------------------------------------------------------------------- what is drawn


def floats(value, name, shape):
    """`value`, any form of numbers, as finite floats of `shape`; a letter there is any size from 1."""
    try:
        array = np.ma.asarray(value, dtype=float).filled(np.nan)  # what is masked is no number
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers, got {value!r:.60}") from None
    return float_array(name, array, shape)


def _runs(name, runs, metric):
    """The metric of every run as rows, which go on with the last number of a run: (runs, epochs). name: of the runs."""
    if not runs or any(metric not in run for run in runs):
        raise ValueError(f"{name}: expected runs that hold {metric!r}, got {[sorted(run) for run in runs]}")
    rows = [floats(run[metric], f"{name}[{metric!r}]", ("epochs",)) for run in runs]
    return np.stack([np.pad(row, (0, max(map(len, rows)) - len(row)), mode="edge") for row in rows])
