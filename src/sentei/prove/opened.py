"""What `evaluate` is given, as a model with its tokenizer, name and directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sentei.errors import InputError


def capped(model: Any, tokens: int) -> int:
    """So many tokens, or as many as the model's context holds."""
    return min(tokens, getattr(model.config.get_text_config(), "max_position_embeddings", None) or tokens)


def open_model(source: Any, tokenizer: Any, options: dict[str, Any]) -> tuple[Any, Any, str, Path | None]:
    """Model, tokenizer, name and directory (None where there is none) of anything that `evaluate` takes."""
    if isinstance(source, (str, Path)):
        from sentei.models.load import load

        loaded = load(source, **options)
        return loaded.model, tokenizer or loaded.tokenizer, loaded.name, _directory(source, loaded.model)
    if isinstance(source, nn.Module):
        directory = _directory(None, source)
        return source, tokenizer, directory.name if directory else type(source).__name__, directory
    return source.model, tokenizer or source.tokenizer, source.name, _directory(None, source.model)


def _directory(source: str | Path | None, model: Any) -> Path | None:
    places = [Path(place) for place in (source, getattr(model, "name_or_path", None)) if place]
    return next((place for place in places if place.is_dir()), None)


def tokenizer_of(tokenizer: Any, name: str) -> Any:
    """The tokenizer of a model that needs one; an InputError where it has none."""
    if tokenizer is None:
        raise InputError(
            f"{name} has no tokenizer; pass one with tokenizer=, or put its files into the model's directory"
        )
    return tokenizer
