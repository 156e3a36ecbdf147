"""What can be read off the style sheets: contrasts of both schemes, and sizes on a narrow page."""

from __future__ import annotations

import colorsys
import importlib.resources
import re

import pytest

from sentei.report.selection import _colour

CSS = (importlib.resources.files("sentei.report") / "page.css").read_text(encoding="utf-8")
SCHEMES = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S)]


def luminance(red: float, green: float, blue: float) -> float:
    """WCAG 2, of channels from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def of(colour: str) -> float:
    return luminance(*(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)))


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
def test_bars_stand_out_and_text_can_be_read(scheme: dict[str, str]) -> None:
    for name in ("attention", "ffn", "warm", "edge"):
        assert contrast(of(scheme[name]), of(scheme["card"])) >= 3, name
    for name in ("ink", "soft", "good", "bad"):
        for ground in ("card", "paper", "mark"):
            assert contrast(of(scheme[name]), of(scheme[ground])) >= 4.5, (name, ground)


def test_clusters_stand_out_on_both() -> None:
    assert len(SCHEMES) == 2
    for cluster in range(64):
        found = re.fullmatch(r"hsl\((\d+) 62% (\d+)%\)", _colour(cluster))
        assert found is not None
        colour = luminance(*colorsys.hls_to_rgb(int(found[1]) / 360, int(found[2]) / 100, 0.62))
        assert all(contrast(colour, of(scheme["card"])) >= 3 for scheme in SCHEMES), cluster


def test_labels_of_pictures_are_large_enough_on_a_narrow_page() -> None:
    least = float(re.search(r"\.picture svg \{ min-width: (\d+)px", CSS)[1]) / 1000  # the pictures are 1000 wide
    sizes = [float(size) for size in re.findall(r"svg text[^{]*\{ font(?:-size)?: ([\d.]+)px", CSS)]
    assert len(sizes) == 2 and min(sizes) * least >= 9
