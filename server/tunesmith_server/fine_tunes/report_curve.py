"""Owns the drawing of a loss curve as SVG: training steps, their running mean, and validation measurements. Pure.

It must not know jobs or where numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 320, 52, 14, 12, 40  # in the drawing's own units
_MAX_POINTS = 1000
_WINDOW = 7

Series = Sequence[tuple[int, float]]
"""Steps and losses in nats."""


@dataclass(frozen=True, slots=True)
class _Axes:
    top: float
    last: int

    def at(self, step: int, loss: float) -> tuple[float, float]:
        """Where a point lies."""
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - 1) / (self.last - 1)
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - loss / self.top)


def draw(train: Series, valid: Series, steps: int) -> str:
    """A figure element that says where it leaves points out; a sentence where there is nothing to draw.

    `steps` is how many training steps there are, of which `train` may hold a part.
    """
    if not train:
        return "<p>No steps so far.</p>"
    top = max(max(loss for _, loss in [*train, *valid]) * 1.05, 1e-9)
    axes = _Axes(top, max(train[-1][0], 2))
    shown, measured = _thinned(train), _thinned(valid)
    lines = _line(axes, shown, "train") + _line(axes, _thinned(_running_mean(train)), "trend")
    dots = "".join(_dot(axes, step, loss) for step, loss in measured)
    drawing = _grid(axes) + lines + _line(axes, measured, "valid") + dots
    keys = (("train", "training steps"), ("trend", "running mean"), ("valid", "validation"))
    legend = "".join(f'<span class="key {key}-key"></span>{name}' for key, name in keys)
    left_out = ""
    if len(shown) < steps or len(measured) < len(valid):
        left_out = (
            f'<p class="soft">Drawn are {len(shown):,} of {steps:,} training steps '
            f"and {len(measured):,} of {len(valid):,} validation measurements.</p>"
        )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss over steps">{drawing}</svg>'
        f"<figcaption>{legend}</figcaption></figure>{left_out}"
    )


def _line(axes: _Axes, series: Series, name: str) -> str:
    corners = " ".join("{:.1f},{:.1f}".format(*axes.at(step, loss)) for step, loss in series)
    return f'<polyline class="{name}" points="{corners}"/>'


def _dot(axes: _Axes, step: int, loss: float) -> str:
    x, y = axes.at(step, loss)
    title = f"<title>step {step}: validation {loss:.3f}</title>"
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'


def _grid(axes: _Axes) -> str:
    """Lines and labels of both axes."""
    bottom = _HEIGHT - _BOTTOM
    parts = []
    spacing = _round_spacing(axes.top / 5)
    for i in range(int(axes.top / spacing) + 1):
        _, y = axes.at(1, i * spacing)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{i * spacing:g}</text>')
    every = max(1, int(_round_spacing(axes.last / 8)))
    for step in [1, *range(max(every, 2), axes.last + 1, every)]:
        x, _ = axes.at(step, 0)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">optimizer step</text>')
    return "".join(parts)


def _round_spacing(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten, so that the labels of an axis are round."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.999), 10 * power)


def _running_mean(series: Series) -> list[tuple[int, float]]:
    means = []
    for i, (step, _) in enumerate(series):
        near = [loss for _, loss in series[max(0, i - _WINDOW // 2) : i + _WINDOW // 2 + 1]]
        means.append((step, sum(near) / len(near)))
    return means


def _thinned(series: Series) -> Series:
    """Points evenly spaced from the first to the last: no screen shows more."""
    if len(series) <= _MAX_POINTS:
        return series
    return [series[place * (len(series) - 1) // (_MAX_POINTS - 1)] for place in range(_MAX_POINTS)]
