"""Which past step wrote what is recalled now: the memory of a network as arcs over the sequence that it has read.

    a_t A_{t-1} = sum over s < t of what step s wrote, and what was there before       (`attribution.written_by`)

Exact: nothing is approximated, nothing left out. Letters: T time steps, B batch, Q questions, H hidden.
"""

from string import ascii_letters

import numpy as np

from .attribution import written_by
from .backend import to_numpy
from .plots import COLORS, _array, _axes

VALUES = 10  # of associative recall


def written_lengths(cell, tape, t):
    """How much of what step t recalls was written by each step before it, (B, t), as lengths in the units of the trace.

    Entry (b, s) is <p, r> / |r|, the length along the recall r = a_t A_{t-1} of the part p that step s wrote: they add
    up to |r| if the trace began empty, and are below zero where p works against the rest. cell, tape, t and errors: as
    `written_by`.
    """
    parts = to_numpy(written_by(cell, tape, t))
    recalled = parts["start"] + parts["clipped"] + (parts["steps"] + parts["noise"]).sum(0)  # (B, H)
    size = np.sqrt((recalled**2).sum(-1))
    return ((parts["steps"] * recalled).sum(-1) / np.where(size > 0, size, 1)).T


def draw(words, questions, lengths, asked=None, title="", ax=None):
    """From each question an arc to every step that wrote what it recalls, as thick and dark as that part is long.

    words: T strings, one per step; questions: Q strings, each asked after all the words; lengths (Q, T), the rows of
    `written_lengths`; asked: the index of the question to stand out, or None. Returns the Figure. Raises ValueError
    where the sizes do not agree.
    """
    lengths = _array(lengths, "lengths", (len(questions), len(words)))
    (ax,) = _axes(ax, 1, (8, 3.2))
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


def of_recall(recalled, title="Which past step wrote what each key recalls"):
    """`draw` of what a stored result of associative recall has under "recalled"; in colour, the key that was asked."""
    return draw(*told(recalled), title)


def told(recalled):
    """Words read (T,), keys asked (P,), lengths (P, T) and the index of the key that the sequence itself asks for.

    recalled: of P pairs, symbols (T + 1,) with T = 2 P + 2, lengths (P, T). Keys come in reverse order, so that arcs do
    not cross. Raises ValueError for anything else.
    """
    symbols, lengths = (np.asarray(recalled.get(name)) for name in ("symbols", "lengths"))
    if lengths.dtype.kind not in "fi" or lengths.ndim != 2 or not lengths.size or not np.isfinite(lengths).all():
        raise ValueError("recalled: lengths: expected a row of finite numbers per pair; make the result again")
    pairs, steps = lengths.shape
    if symbols.dtype.kind != "i" or steps != 2 * pairs + 2 or symbols.shape != (steps + 1,) or symbols.min() < 0:
        raise ValueError("recalled: symbols: expected a key and a value per pair, two marks and a key, whole numbers")
    mark = symbols.max()
    keys = mark - VALUES  # first keys, then values, then the mark
    words = [_letter(s) if s < keys else "?" if s == mark else str(s - keys) for s in symbols.tolist()]
    asked = words[0 : 2 * pairs : 2][::-1]
    if words[-1] not in asked:
        raise ValueError(f"recalled: symbols: the key asked, {words[-1]}, is none of those told")
    return words[:-1], asked, lengths[::-1], asked.index(words[-1])


def _letter(number):
    """A letter for each of the first 76 keys: a to z, A to Z, alpha to omega."""
    greek = "αβγδεζηθικλμνξοπρστυφχψω"
    return (ascii_letters + greek)[number : number + 1] or f"k{number}"
