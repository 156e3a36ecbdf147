"""Draws docs/perplexity.svg from benchmarks/results/methods.jsonl: perplexity ratio against what was removed.

python benchmarks/figure.py
"""

from __future__ import annotations

import math
from pathlib import Path

from tables import PEERS, rows

OUT = Path(__file__).parents[1] / "docs" / "perplexity.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 780, 400, 60, 190, 46, 50
LOW, HIGH = 1.0, 8.0  # the axis is logarithmic; what is worse is not drawn
SHOWN = {
    "auto": "#4f5bd5",
    "structural": "#c2418c",
    "numerical": "#14917b",
    "flap": "#b3591f",
    "wanda-sp": "#8a5cb8",
    "llm-pruner": "#777777",
}


def x(sparsity: float) -> float:
    """Horizontal place of a sparsity, 0 to 50 %."""
    return LEFT + sparsity / 0.5 * (WIDTH - LEFT - RIGHT)


def y(ratio: float) -> float:
    """Vertical place of a perplexity ratio."""
    return TOP + (1 - math.log(ratio / LOW) / math.log(HIGH / LOW)) * (HEIGHT - TOP - BOTTOM)


def main() -> None:
    own = [r for r in rows("methods") if r["key"]["domain"] == "in-domain" and r["key"]["test"] != "full"]
    dense = next(r["perplexity"] for r in own if r["key"]["method"] == "dense")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="600">Perplexity, pruned / dense, without any training (SmolLM2-135M, WikiText-2)</text>',
    ]
    for ratio in (1, 1.25, 1.5, 2, 3, 4, 6, 8):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(ratio):.1f}" y2="{y(ratio):.1f}" stroke="#e4e4e4"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y(ratio) + 4:.1f}" text-anchor="end" fill="#555">×{ratio:g}</text>')
    for sparsity in (0, 0.1, 0.2, 0.3, 0.4, 0.5):
        parts.append(
            f'<text x="{x(sparsity):.1f}" y="{HEIGHT - 26}" text-anchor="middle" fill="#555">{sparsity:.0%}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">block params removed</text>'
    )
    for method, colour in SHOWN.items():
        found = sorted((r["key"]["sparsity"], r["perplexity"] / dense) for r in own if r["key"]["method"] == method)
        points = [(0.0, 1.0), *((s, v) for s, v in found if v <= HIGH)]
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{3 if method == "auto" else 1.6}"/>'
        )
        parts += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.5" fill="{colour}"/>' for s, v in points[1:]]
        end = points[-1]
        parts.append(f'<text x="{x(end[0]) + 8:.1f}" y="{y(end[1]) + 4:.1f}" fill="{colour}">{method}</text>')
    for figures in PEERS.values():
        for sparsity, (_, ratio) in figures.items():
            parts.append(
                f'<path d="M {x(sparsity) - 4:.1f} {y(ratio) - 4:.1f} l 8 8 m 0 -8 l -8 8" stroke="#c0392b" stroke-width="1.6"/>'
            )
    parts.append(
        f'<path d="M {WIDTH - RIGHT + 12} {HEIGHT - 76} l 8 8 m 0 -8 l -8 8" stroke="#c0392b" stroke-width="1.6"/>'
    )
    parts.append(f'<text x="{WIDTH - RIGHT + 26}" y="{HEIGHT - 68}" fill="#c0392b">public code of others</text>')
    OUT.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    print(OUT)


if __name__ == "__main__":
    main()
