"""Figures of training and of the memory: pure functions from NumPy arrays to a matplotlib Figure.

Each function draws into the axes it is given, or into a new figure 8 inches wide, and returns the Figure.
The first call imports matplotlib, and none imports pyplot: no backend is needed, no figure stays open. In a
notebook, say `%matplotlib inline` once and end a cell with the figure.
Signed values are red and blue around a white zero, shares run from dark to bright (cividis); lines differ in
colour (Okabe and Ito, 2008), dash and marker, so that a print in grey still reads.
Bad input (rank, NaN, empty, lengths that differ) raises ValueError, labels that are not integers TypeError:
the message names the argument, what came and what was expected.

Letters: T time steps, N memory slots, H hidden units, K traces, C classes, W pixels in an input row.
"""

import hashlib
import re
from pathlib import Path

import numpy as np

from .checks import class_labels, float_array

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.")  # marker and dash of each colour
UNITS, SLOTS, TRACE = "hidden unit (index)", "memory slot (index)", "trace A (no unit)"
# Font Awesome's names for the buttons of an animation -> characters that need no font from the network.
ICONS = {"minus": "−", "fast-backward": "«", "step-backward": "‹", "play fa-flip-horizontal": "◂"}
ICONS |= {"pause": "‖", "play": "▸", "step-forward": "›", "fast-forward": "»", "plus": "+"}


def learning_curves(histories, metrics=("val_loss", "val_accuracy"), loss_unit="nats", axes=None):
    """One panel per metric, one line per model, over epochs.

    histories  model name -> {"loss", "accuracy", "val_loss", "val_accuracy": one number per epoch}, or -> a
               list of such runs: mean and a band, smallest to largest, of the runs that reached each epoch
    metrics    keys to draw; a loss (in `loss_unit`) on a logarithmic axis, an accuracy (0 to 1) in per cent
    axes       as many as metrics
    """
    if not histories or not metrics:
        raise ValueError(f"histories, metrics: expected at least one each, got {histories!r} and {metrics!r}")
    axes = _axes(axes, len(metrics), (8, 3.4))
    for metric, ax in zip(metrics, axes, strict=True):
        for i, (model, runs) in enumerate(histories.items()):
            several = [runs] if isinstance(runs, dict) else runs
            values = _runs(f"histories[{model!r}]", several, metric)  # (runs, epochs)
            _band(ax, i, range(1, values.shape[1] + 1), values, model)
        kind, validation = metric.removeprefix("val_").replace("_", " "), metric.startswith("val_")
        ylabel = f"loss ({loss_unit})" if kind == "loss" else kind
        ax.set(title=f"{'Validation' if validation else 'Training'} {kind}", xlabel="epoch", ylabel=ylabel)
        _whole_numbers(ax.xaxis)
        if kind == "accuracy":
            ax.yaxis.set_major_formatter(_percent)
        elif kind == "loss":
            _logarithmic(ax)
    axes[-1].legend(frameon=False, handlelength=3)
    return axes[0].figure


def task_curves(tasks, axes=None):
    """One panel per task, one line per network, over training steps: validation accuracy, or the loss of a regression.

    tasks  title -> network -> runs, each {"step", "val_accuracy" or "val_loss": one number per validation}; mean and
           band as above. A run that ended early, with nothing left to learn, counts on with its last number
    axes   as many as tasks
    """
    if not tasks or not all(tasks.values()):
        raise ValueError(f"tasks: expected at least one, each with a network, got {tasks!r:.100}")
    axes, colors = _axes(axes, len(tasks), (8, 3.4)), {}
    for (title, networks), ax in zip(tasks.items(), axes, strict=True):
        accuracy = all("val_accuracy" in run for runs in networks.values() for run in runs)
        metric = "val_accuracy" if accuracy else "val_loss"
        for model, runs in networks.items():
            name = f"tasks[{title!r}][{model!r}]"
            steps, values = _runs(name, runs, "step"), _runs(name, runs, metric)  # (runs, validations)
            for row in values:
                row[np.isnan(row)] = row[~np.isnan(row)][-1]
            _band(ax, colors.setdefault(model, len(colors)), np.nanmax(steps, 0), values, model)
        ax.set(title=title, xlabel="training step", ylabel=metric.replace("val_", "validation "), xlim=0)
        if accuracy:
            ax.set_ylim(0, 1.03)
            ax.yaxis.set_major_formatter(_percent)
        else:
            _logarithmic(ax)
    max(axes, key=lambda ax: len(ax.lines)).legend(frameon=False, handlelength=3)
    return axes[0].figure


def _runs(name, runs, metric):
    """The metric of every run as rows, padded with NaN after a run's last epoch: (runs, epochs). name: of the runs."""
    if not runs or any(metric not in run for run in runs):
        raise ValueError(f"{name}: expected runs that hold {metric!r}, got {[sorted(run) for run in runs]}")
    rows = [_array(run[metric], f"{name}[{metric!r}]", ("epochs",)) for run in runs]
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=np.nan) for row in rows])


def _band(ax, i, x, values, label):
    """Line number i, the mean of values (runs, ...) that are there, and a band from the smallest to the largest."""
    color = _line(ax, i, x, np.nanmean(values, 0), label)
    ax.fill_between(x, np.nanmin(values, 0), np.nanmax(values, 0), color=color, alpha=0.2, lw=0)


def confusion_matrix(y_true, y_pred, names=None, ax=None):
    """How often each true class (row) was given each class (column): counts, coloured by share of the row.

    y_true, y_pred  (samples,) integers from 0 to C - 1
    names           C class names; without them the integers
    """
    if not np.size(y_true) or not np.size(y_pred):
        raise ValueError("y_true, y_pred: expected at least one label each, got none")
    names = range(max(np.max(y_true), np.max(y_pred)) + 1) if names is None else names
    C = len(names)
    y_true = class_labels("y_true", y_true, (np.size(y_true),), C)
    y_pred = class_labels("y_pred", y_pred, y_true.shape, C)
    counts = np.bincount(y_true.astype(int) * C + y_pred, minlength=C * C).reshape(C, C)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    (ax,) = _axes(ax, 1, (6.4, 5.4))
    image = ax.imshow(share, cmap="cividis", vmin=0, vmax=1)
    ax.figure.colorbar(image, ax=ax, label="share of the true class", format=_percent)
    title = f"Confusion matrix: {np.trace(counts) / len(y_true):.1%} of {len(y_true):,} correct"
    ax.set(title=title, xlabel="predicted class", ylabel="true class")
    if C <= 20:
        ax.set(xticks=range(C), yticks=range(C), yticklabels=names)
        ax.set_xticklabels(names, rotation=0 if max(len(str(name)) for name in names) < 4 else 90)
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "black" if share[row, column] > 0.5 else "white"
            ax.text(column, row, counts[row, column], color=color, ha="center", va="center", fontsize=8)
    return ax.figure


def trace_heatmap(A, title="Hebbian trace", limit=None, ax=None):
    """A trace A (N, H), slots x hidden units; `limit` ends the colour scale, else the largest |A|."""
    (ax,) = _axes(ax, 1, (8, 3.8))
    _signed(ax, _array(A, "A", ("N", "H")), title, limit, TRACE)
    return ax.figure


def bank_rows(M, limit=None, ax=None):
    """The learned memory bank M (N, H), slots x hidden units; `limit` as in trace_heatmap."""
    (ax,) = _axes(ax, 1, (8, 3.8))
    _signed(ax, _array(M, "M", ("N", "H")), "Memory bank", limit, "bank M (no unit)")
    return ax.figure


def trace_evolution(traces, labels=None, unit="epoch", axes=None):
    """Traces over training or over a sequence as maps on one colour scale, and the size |A| of each as lines.

    traces  (K, N, H)
    labels  K names or numbers, 1 to K without them; `unit` is what they count
    axes    one or more for maps, and the last for the lines; without them up to 6 maps, evenly spread over K
    """
    traces, labels = _traces(traces, labels)
    K = len(traces)
    if axes is None:
        rows, columns = (1, K) if K < 4 else (2, min(K // 2, 3))
        figure = _matplotlib().figure.Figure(figsize=(8, 2 + 2.2 * rows), layout="constrained")
        top, foot = figure.add_gridspec(2, 1, height_ratios=(1.5 * rows, 1))
        axes = [*top.subgridspec(rows, columns).subplots(squeeze=False).flat, figure.add_subplot(foot)]
    *maps, lines = _axes(axes, max(np.size(axes), 2))
    picked = np.linspace(0, K - 1, len(maps)).round().astype(int)
    for ax, k in zip(maps, picked, strict=True):
        image = _signed(ax, traces[k], f"{unit} {labels[k]}", abs(traces).max())
        ax.label_outer()
    lines.figure.colorbar(image, ax=maps, label=TRACE)
    for i, (name, reduce) in enumerate({"largest |A|": np.max, "mean |A|": np.mean}.items()):
        sizes = reduce(abs(traces), (1, 2))
        color = _line(lines, i, range(K), sizes, name)
        lines.annotate(name, (K - 1, sizes[-1]), (0, 8), textcoords="offset points", color=color, ha="right")
    lines.set(title="Size of the trace", xlabel=unit, ylabel="|A| (no unit)")
    lines.set_xticks(picked, [labels[k] for k in picked])
    lines.margins(y=0.3)
    _logarithmic(lines)
    return lines.figure


def trace_change(first, last, labels=("first", "last"), axes=None):
    """Two traces (N, H), their difference and the norm of each, on one colour scale; three axes."""
    first = _array(first, "first", ("N", "H"))
    last = _array(last, "last", first.shape)
    arrays, names = (first, last, last - first), (*labels, f"{labels[1]} − {labels[0]}")
    axes = _axes(axes, 3, (8, 3.2))
    for ax, array, name in zip(axes, arrays, names, strict=True):
        title = f"{name}\nnorm {np.linalg.norm(array):.3g}"
        image = _signed(ax, array, title, max(abs(each).max() for each in arrays))
        ax.label_outer()
    axes[0].figure.colorbar(image, ax=axes, label=TRACE)
    return axes[0].figure


def retrieval_over_time(a, image=None, words=None, limits=None, axes=None):
    """What each time step recalled: weights a (T, N), time downwards, beside the input that was read.

    image   (T, W) numbers or (T, W, 3) colours, 0 to 1 or uint8: row t is the input of step t
    words   T strings, in place of an image
    limits  ends of the colour scale, else the smallest and largest weight; the bar marks 1/N, an even recall
    axes    weights and effective slots; with an image three, its own first

    The panel at the right is exp(entropy), the effective number of slots: 1 is one slot, N all slots alike.
    """
    a = _weights(a, ("T", "N"))
    T, N = a.shape
    pixels = [] if image is None else [_pixels(image, T)]
    if words is not None and (pixels or len(words) != T):
        raise ValueError(f"words: expected {T} strings, one per step of a, and no image, got {len(words)}")
    ratios = [*(min(max(3 * p.shape[1] / T, 1), 4) for p in pixels), 3, 1]
    axes = _axes(axes, len(ratios), (8, 3.6 if words is None else max(3.6, 0.2 * T)), ratios)
    for ax, p in zip(axes, pixels, strict=False):
        ax.imshow(p, cmap="gray", aspect="auto")
        ax.set(title="Input", xlabel="pixel (column)", ylabel="time step (input row)")
        _whole_numbers(ax.xaxis, ax.yaxis)
    weights, side = axes[-2:]
    low, high = limits or (a.min(), a.max())
    heat = weights.imshow(a, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    weights.set(title="Retrieval weights", xlabel=SLOTS, ylabel="time step" if words is None else "word")
    _whole_numbers(weights.xaxis, weights.yaxis)
    if words is not None:
        weights.set_yticks(range(T), words)
    bar = weights.figure.colorbar(heat, ax=axes, label="retrieval weight a (sum over slots: 1)")
    bar.ax.axhline(1 / N, color="red", lw=2)
    at = {"transform": bar.ax.get_yaxis_transform(), "ha": "right", "va": "center"}
    bar.ax.text(-0.3, 1 / N, "1/N", color="red", **at)
    effective = np.exp(-(a * np.log(np.where(a > 0, a, 1))).sum(-1))  # (T,)
    side.plot(effective, range(T), color=COLORS[0])
    side.axvline(N, color="grey", ls=":")
    side.set(title=f"mean {effective.mean():.1f}", xlabel="effective slots")
    side.set(xlim=(0, N * 1.1), xticks=[0, N], ylim=(T - 0.5, -0.5), yticklabels=[])
    return side.figure


def slot_usage(a, ax=None):
    """Mean retrieval weight of each slot, a (..., N) over all other axes, beside the even share 1/N."""
    a = _weights(a, ("...",) * (np.ndim(a) - 1) + ("N",))
    N = a.shape[-1]
    (ax,) = _axes(ax, 1, (8, 3))
    ax.bar(range(N), a.reshape(-1, N).mean(0), color=COLORS[5])
    ax.axhline(1 / N, color="black", ls="--", lw=1)
    ax.text(1.01, 1 / N, "1/N", transform=ax.get_yaxis_transform(), va="center")
    ax.set(title="Slot usage", xlabel=SLOTS, ylabel="mean retrieval weight a", xlim=(-0.6, N - 0.4))
    _whole_numbers(ax.xaxis)
    return ax.figure


def slot_similarity(M, ax=None):
    """Cosine of every two rows of M (N, H), bank or trace; the scale ends at the largest off the diagonal."""
    M = _array(M, "M", ("N", "H"))
    unit = M / np.sqrt(np.maximum((M**2).sum(1, keepdims=True), 1e-12))  # SPEC (3): a row of zeros stays zero
    cosine = unit @ unit.T  # (N, N)
    limit = abs(cosine - np.diag(np.diag(cosine))).max() or 1.0
    (ax,) = _axes(ax, 1, (6.4, 5.2))
    image = ax.imshow(cosine, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.figure.colorbar(image, ax=ax, label="cosine (diagonal: 1, off the scale)", extend="max")
    ax.set(title="Similarity of the slots", xlabel=SLOTS, ylabel=SLOTS)
    _whole_numbers(ax.xaxis, ax.yaxis)
    return ax.figure


def trace_animation(traces, labels=None, unit="epoch", ax=None):
    """matplotlib's FuncAnimation: a frame per trace (K, N, H), on one colour scale; see trace_evolution."""
    traces, labels = _traces(traces, labels)
    (ax,) = _axes(ax, 1, (7, 3.5))
    image = _signed(ax, traces[0], "", abs(traces).max(), TRACE)
    image.set_interpolation("nearest")  # smoothed cells would make the frames three times as large

    def draw(k):
        image.set_data(traces[k])
        ax.set_title(f"Hebbian trace, {unit} {labels[k]}")
        return (image,)

    return _matplotlib().animation.FuncAnimation(ax.figure, draw, frames=len(traces), interval=300)


def animation_html(animation, fps=4):
    """The animation as HTML with slider and buttons, about 60 kB a frame; equal animations give equal text.

    matplotlib's own HTML takes its button font from the network and holds a random id: both are replaced.
    """
    settings = {"animation.embed_limit": 1000, "savefig.dpi": 70}  # MB, so that no frame is left out
    with _matplotlib().rc_context(settings):
        page = animation.to_jshtml(fps=fps, default_mode="once")
    page = re.sub(r'<link rel="stylesheet"\s+href="http[^>]*>', "", page)
    page = re.sub(r'<i class="fa fa-([^"]+)"></i>', lambda icon: ICONS.get(icon[1], icon[1]), page)
    random_id = re.search(r"_anim_img([0-9a-f]{32})", page)[1]
    return page.replace(random_id, hashlib.sha256(page.replace(random_id, "").encode()).hexdigest()[:32])


def save(figure, path):
    """Write a PNG (150 dots per inch) or SVG, by suffix, and its folder; equal figures give equal bytes."""
    path = Path(path)
    metadata = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
    if path.suffix not in metadata:
        raise ValueError(f"path: expected one that ends in .png or .svg, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _matplotlib().rc_context({"svg.hashsalt": "enn_np"}):
        figure.savefig(path, dpi=150, metadata=metadata[path.suffix])
    figure.set_layout_engine("none")  # it would move all by a fraction of a pixel at the next drawing


def _matplotlib():
    import matplotlib.animation
    import matplotlib.figure

    return matplotlib


def _axes(axes, count, size=None, ratios=None):
    """`axes` as a list of `count`, or as many side by side in a new figure of `size` inches."""
    if axes is None:
        figure = _matplotlib().figure.Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, count, squeeze=False, width_ratios=ratios)
    axes = list(np.ravel(axes))
    if len(axes) != count:
        raise ValueError(f"axes: expected {count}, got {len(axes)}")
    return axes


def _line(ax, i, x, y, label):
    """Draw line number i and return its colour."""
    i %= len(COLORS)
    ax.plot(x, y, LINES[i], color=COLORS[i], markersize=4, label=label)
    return COLORS[i]


def _whole_numbers(*axes):
    """Ticks on whole numbers only: these axes count."""
    for axis in axes:
        axis.get_major_locator().set_params(integer=True)


def _percent(x, _position=None):
    return f"{100 * x:.4g}%"


def _logarithmic(ax):
    """A logarithmic y axis with plain numbers, if all lines lie above zero; if not, one from their lowest."""
    lowest, highest = (pick(pick(line.get_ydata()) for line in ax.lines) for pick in (min, max))
    if lowest <= 0:
        ax.set_ylim(bottom=lowest)
    else:
        ax.set_yscale("log")
        # Over many decades matplotlib leaves out all ticks rather than those between the powers of ten.
        ax.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if highest < 100 * lowest else (1,))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")


def _signed(ax, array, title, limit=None, bar=None):
    """`array` (N, H) as an image from -limit to limit, with a colour bar named `bar`."""
    limit = limit or abs(array).max() or 1.0
    image = ax.imshow(array, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set(title=title, xlabel=UNITS, ylabel=SLOTS)
    _whole_numbers(ax.xaxis, ax.yaxis)
    if bar:
        ax.figure.colorbar(image, ax=ax, label=bar)
    return image


def _array(value, name, shape):
    """`value`, any form of numbers, as finite floats of `shape`; a letter there is any size from 1."""
    try:
        array = np.ma.asarray(value, dtype=float).filled(np.nan)  # what is masked is no number
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers, got {value!r:.60}") from None
    return float_array(name, array, shape)


def _weights(a, shape):
    """Retrieval weights, checked: at least 0, and 1 in sum over the slots."""
    a = _array(a, "a", shape)
    if a.min() < 0 or abs(a.sum(-1) - 1).max() > 1e-3:
        got = f"a least one of {a.min():.3g} and sums from {a.sum(-1).min():.3g} to {a.sum(-1).max():.3g}"
        raise ValueError(f"a: expected weights from 0 that sum to 1 over the last axis, got {got}")
    return a


def _traces(traces, labels):
    """Traces (K, N, H), checked, and their K labels, 1 to K without any."""
    traces = _array(traces, "traces", ("K", "N", "H"))
    labels = range(1, len(traces) + 1) if labels is None else labels
    if len(labels) != len(traces):
        raise ValueError(f"labels: expected {len(traces)}, one per trace, got {len(labels)}")
    return traces, labels


def _pixels(image, T):
    """The input rows, checked: (T, W) numbers, or (T, W, 3) colours from 0 to 1; uint8 is divided by 255."""
    pixels = _array(image, "image", (T, "W", 3)[: max(np.ndim(image), 2)])
    pixels = pixels / 255 if np.asarray(image).dtype == np.uint8 else pixels
    if pixels.ndim == 3 and not 0 <= pixels.min() <= pixels.max() <= 1:
        raise ValueError(f"image: expected colours from 0 to 1, got {pixels.min():.3g} to {pixels.max():.3g}")
    return pixels
