"""Axes of pictures: where a value is drawn, and at which values there are lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Values `low` to `high` on the pixels `start` to `end`; what lies outside is drawn on the edge."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def ticks(self, about: int = 6) -> list[float]:
        """Round values inside: steps of 1, 2 or 5 times a power of ten, at most `about` of them."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def spanned(values: list[float], start: float, end: float, room: float = 0.06) -> Axis:
    """An axis over all values, with some room at both ends; one value alone is in its middle."""
    low, high = min(values), max(values)
    free = room * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - free, high + free, start, end)


def grid(x: Axis, y: Axis, show_x: Callable[[float], str], show_y: Callable[[float], str]) -> str:
    """Lines and numbers of both axes; y grows upwards, so `y.start` is its lower end."""
    parts = ""
    for value in y.ticks():
        at = y.at(value)
        parts += f'<line class="axis" x1="{x.start:g}" x2="{x.end:g}" y1="{at:.1f}" y2="{at:.1f}"/>'
        parts += f'<text x="{x.start - 8:g}" y="{at + 4:.1f}" text-anchor="end">{show_y(value)}</text>'
    for value in x.ticks(10):
        at = x.at(value)
        parts += f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{y.start:g}" y2="{y.start + 5:g}"/>'
        parts += f'<text x="{at:.1f}" y="{y.start + 20:g}" text-anchor="middle">{show_x(value)}</text>'
    return parts
