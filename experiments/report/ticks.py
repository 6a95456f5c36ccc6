"""Axes whose labelled ticks enclose everything that is drawn: plain, logarithmic, and of accuracies and densities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

__all__ = [
    "accuracy_axis",
    "clipped_accuracy",
    "count_axis",
    "density_axis",
    "index_axis",
    "is_logit",
    "linear_axis",
    "linear_ticks",
    "log_axis",
    "log_ticks",
    "spaced",
]

Side = Literal["x", "y"]

_ACCURACIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
"""Where a logit axis of accuracies may have ticks."""

_DIGITS = ((1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""First digits of the ticks of a logarithmic axis, from the closest ticks to the widest."""

_NARROW = 1.3
"""Below this ratio of the largest to the smallest number, a logarithmic axis has ticks at equal distances."""

_MARGIN = 0.04
"""Room outside the first and the last tick, as a share of the axis, so that no marker is cut."""

_CLOSE = 1e-9
"""Relative distance below which a number counts as lying on a tick."""


def linear_ticks(low: float, high: float, *, most: int = 5, integer: bool = False) -> list[float]:
    """At most `most` + 1 round numbers, equally far apart, that enclose low and high.

    >>> linear_ticks(0.3, 9.2, most=4)
    [0.0, 2.5, 5.0, 7.5, 10.0]
    """
    if high - low <= _CLOSE * abs(high):  # one number
        room = 1.0 if integer else 0.05 * abs(high) or 1.0
        low, high = low - room, high + room
    ticks = MaxNLocator(most, integer=integer, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return _enclosing([float(tick) for tick in ticks], low, high)


def log_ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """About `most` round numbers or fewer that enclose two positive numbers, for a logarithmic axis.

    >>> log_ticks(0.03, 0.9)
    [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    >>> log_ticks(2e-9, 3e5)
    [1e-09, 1e-06, 0.001, 1.0, 1000.0, 1000000.0]
    """
    if 1 + _CLOSE < high / low < _NARROW:
        return linear_ticks(low, high, most=most - 2)
    first, last = int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1
    for digits in _DIGITS:
        values = [float(f"{digit:g}e{power}") for power in range(first, last + 1) for digit in digits]
        ticks = _enclosing(values, low, high)
        if len(ticks) <= most:
            return ticks
    every = -(-(last - first - 2) // (most - 1))
    powers = range(every * (first // every), last + every, every)
    return _enclosing([float(f"1e{power}") for power in powers], low, high)


def _enclosing(values: Sequence[float], low: float, high: float) -> list[float]:
    """Of ascending values those from the last one up to `low` to the first one from `high` on, two at least."""
    low, high = low + _CLOSE * abs(low), high - _CLOSE * abs(high)
    start = max((place for place, value in enumerate(values) if value <= low), default=0)
    end = min((place for place, value in enumerate(values) if value >= high), default=len(values) - 1)
    if start == end:  # one number, which lies on a tick
        start, end = max(0, start - 1), min(len(values) - 1, end + 1)
    return list(values[start : end + 1])


def linear_axis(axes: Axes | Sequence[Axes], side: Side = "y", *, most: int = 5, low: float | None = None) -> None:
    """Ticks that enclose what is drawn on all of the axes, and limits that they share; from `low` on, where given."""
    _set(axes, side, lambda least, largest: linear_ticks(least if low is None else low, largest, most=most), "linear")


def count_axis(axes: Axes | Sequence[Axes], side: Side = "x", *, most: int = 5) -> None:
    """`linear_axis` for whole numbers: epochs, steps, layers."""
    _set(axes, side, lambda low, high: linear_ticks(low, high, most=most, integer=True), "linear")


def index_axis(axis: Axes, count: int) -> None:
    """Ticks at about eight of the whole numbers from 1 to `count`, both ends among them, and room for points beside."""
    step = -(-count // 8)
    ticks = [count - step * number for number in range((count - 1) // step, -1, -1)]
    ticks = ticks if ticks[0] == 1 else [1, *(ticks[1:] if ticks[0] - 1 < step / 2 else ticks)]
    _place(axis, "x", ticks, "linear", _plain(ticks))
    axis.set_xlim(0.5, count + 0.5)


def log_axis(
    axes: Axes | Sequence[Axes],
    side: Side = "y",
    *,
    most: int = 6,
    words: Callable[[float], str] | None = None,
    span: tuple[float, float] | None = None,
) -> None:
    """A logarithmic axis in plain numbers (powers of ten would be set as formulas, which takes long).

    Its ticks enclose what is drawn on all of the axes, or the `span`, and its limits are theirs together. `words`
    spells a tick.
    """
    _set(axes, side, lambda low, high: log_ticks(*(span or (low, high)), most=most), "log", words)


def clipped_accuracy(accuracy: Any) -> Any:
    """Shares as a logit axis can show them: 0 and 1 themselves lie infinitely far out."""
    return np.clip(accuracy, _ACCURACIES[0], _ACCURACIES[-1])


def is_logit(axis: Axes) -> bool:
    """Whether an `accuracy_axis` is a logit axis."""
    return bool(axis.get_yscale() == "logit")


def accuracy_axis(axes: Axes | Sequence[Axes]) -> None:
    """A logit axis, on which 97 and 98 per cent lie as far apart as 67 and 75; linear where they lie close together."""
    low, high = _drawn(axes, "y", positive=True) or (0.1, 0.9)
    inside = [share for share in _ACCURACIES if low <= share <= high]
    logit = len(inside) > 1
    _set(axes, "y", _logit_ticks if logit else _share_ticks, "logit" if logit else "linear", _percent)


def _logit_ticks(low: float, high: float) -> list[float]:
    ticks = np.array(_enclosing(_ACCURACIES, low, high))
    return spaced(ticks, np.log(ticks / (1 - ticks)), 12)


def _share_ticks(low: float, high: float) -> list[float]:
    return [tick for tick in linear_ticks(low, high, most=4) if 0 <= tick <= 1]


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def density_axis(axis: Axes, densities: Sequence[float]) -> None:
    """A logarithmic axis with ticks at the densities themselves, the highest and the lowest among them."""
    ascending = np.sort(np.asarray(densities, float)) if len(densities) else np.ones(1)
    _place(axis, "x", spaced(ascending, np.log(ascending), 7), "log", lambda density: f"{density:g}")


def spaced(values: Sequence[float] | np.ndarray, places: np.ndarray, most: int) -> list[float]:
    """Of ascending values the first, the last, and those between that leave each label its part of `most` parts."""
    least = 0.999 * (places[-1] - places[0]) / most
    chosen = [len(places) - 1]
    for number in range(len(places) - 2, -1, -1):
        room = places[chosen[-1]] - places[number] > least
        if room and (number == 0 or places[number] - places[0] > least):
            chosen.append(number)
    if chosen[-1] != 0:
        chosen.append(0)
    return [float(values[number]) for number in chosen[::-1]]


def _set(
    axes: Axes | Sequence[Axes],
    side: Side,
    ticks_of: Callable[[float, float], list[float]],
    scale: str,
    words: Callable[[float], str] | None = None,
) -> None:
    """Scale, ticks and limits of one axis, or of several together; axes on which nothing is drawn stay as they are."""
    together = [axes] if isinstance(axes, Axes) else list(axes)
    span = _drawn(together, side, positive=scale != "linear")
    if span is None:
        return
    ticks = ticks_of(*span)
    for axis in together:
        _place(axis, side, ticks, scale, words or _plain(ticks))


def _plain(ticks: Sequence[float]) -> Callable[[float], str]:
    """A tick as a number without the digits of rounding, with a true minus sign."""
    step = min(np.diff(ticks), default=1.0)
    return lambda value: "0" if abs(value) < 1e-6 * step else f"{value:.6g}".replace("-", "−")


def _place(axis: Axes, side: Side, ticks: Sequence[float], scale: str, words: Callable[[float], str]) -> None:
    axis.set(**{f"{side}scale": scale})
    chosen = axis.xaxis if side == "x" else axis.yaxis
    chosen.set_major_locator(FixedLocator(list(ticks)))
    chosen.set_minor_locator(NullLocator())
    chosen.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axis.set(**{f"{side}lim": _with_margin(ticks[0], ticks[-1], scale)})


def _with_margin(low: float, high: float, scale: str) -> tuple[float, float]:
    """Limits a little outside the first and the last tick."""
    forward: dict[str, Callable[[Any], Any]] = {"log": np.log, "logit": lambda p: np.log(p / (1 - p))}
    back: dict[str, Callable[[Any], Any]] = {"log": np.exp, "logit": lambda z: 1 / (1 + np.exp(-z))}
    first, last = (float(forward[scale](end)) if scale in forward else end for end in (low, high))
    room = _MARGIN * (last - first) or 0.7
    limits = first - room, last + room
    return (float(back[scale](limits[0])), float(back[scale](limits[1]))) if scale in back else limits


def _drawn(axes: Axes | Sequence[Axes], side: Side, *, positive: bool) -> tuple[float, float] | None:
    """The least and the largest number drawn on the axes, of the positive ones where asked; None where none is."""
    lows, highs = [], []
    for axis in [axes] if isinstance(axes, Axes) else axes:
        box: matplotlib.transforms.Bbox = axis.dataLim
        low, high = box.intervalx if side == "x" else box.intervaly
        if positive and low <= 0:
            low = box.minposx if side == "x" else box.minposy
        if np.isfinite(low) and np.isfinite(high) and low <= high:
            lows.append(float(low))
            highs.append(float(high))
    return (min(lows), max(highs)) if lows else None
