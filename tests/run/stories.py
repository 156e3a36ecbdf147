"""A recipe for the tiny story model on the shared data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_recipe(
    folder: Path, stories_dir: Path, data_dir: Path, tokens: int, gradient_tokens: int, windows: int, tasks: list[str]
) -> Path:
    """Writes recipe.yaml: fp32, 20 %, calibrated on C4, perplexity of WikiText-2, no timing."""
    recipe: dict[str, Any] = {
        "model": str(stories_dir),
        "data": str(data_dir / "lm" / "c4_demo.jsonl"),
        "budget": {"sparsity": 0.2},
        "dtype": "float32",
        "measure": {"tokens": tokens, "window": 128, "gradient_tokens": gradient_tokens},
        "prove": {
            "texts": [str(data_dir / "lm" / "wikitext2_tok.valid.jsonl")],
            "tasks": tasks,
            "window": 128,
            "windows": windows,
            "speed": False,
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return folder / "recipe.yaml"
