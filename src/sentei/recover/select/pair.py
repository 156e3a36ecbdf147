"""Whether two models can be compared, and whether one looks like a pruning of the other."""

from __future__ import annotations

from typing import Any

from sentei.errors import InputError
from sentei.models.identity import same_weights
from sentei.models.load import Loaded


def same_tokens(dense: Loaded, pruned: Loaded) -> None:
    """Distributions can be compared only over the same tokens.

    One model may have more rows than the other, as sizes are padded differently; they are compared over the rows that
    both have, and the pool may hold no other token.

    Raises:
        InputError: no tokenizer, or different ones.
    """
    if dense.tokenizer is None:
        raise InputError(
            f"{dense.name} has no tokenizer, which is needed to read the pool; put tokenizer.json beside it"
        )
    if pruned.tokenizer is not None and dense.tokenizer.get_vocab() != pruned.tokenizer.get_vocab():
        raise InputError(
            f"{dense.name} and {pruned.name} have different tokenizers "
            f"({len(dense.tokenizer):,} and {len(pruned.tokenizer):,} tokens), so their predictions cannot be "
            "compared; give a model and a pruning of it"
        )


def shared_tokens(*models: Any) -> int:
    """Tokens that all models predict and know; what one of them has beyond is padding, or a token the others lack."""
    embeddings = [model.get_input_embeddings() for model in models] + [
        model.get_output_embeddings() for model in models
    ]
    return min(int(embedding.weight.shape[0]) for embedding in embeddings)


def doubts(dense: Loaded, pruned: Loaded) -> list[str]:
    """What speaks against one model being a pruning of the other. It is allowed, and said."""
    if same_weights(dense.digest, pruned.digest):
        return [f"{pruned.name} has the weights of {dense.name}: there is no damage to find"]
    before, after = dense.model.config.get_text_config(), pruned.model.config.get_text_config()
    kinds = [str(config.model_type).removeprefix("sentei_") for config in (before, after)]
    params = [sum(p.numel() for p in loaded.model.parameters()) for loaded in (dense, pruned)]
    differs = []
    if kinds[0] != kinds[1]:
        differs.append(f"its architecture is {kinds[1]}, not {kinds[0]}")
    if before.hidden_size != after.hidden_size:
        differs.append(f"its hidden size is {after.hidden_size:,}, not {before.hidden_size:,}")
    if params[1] > params[0]:
        differs.append(f"it has more parameters ({params[1]:,} against {params[0]:,})")
    if not differs:
        return []
    return [
        f"{pruned.name} may be no pruning of {dense.name}: {'; '.join(differs)}; damage counts all that differs "
        "between the two"
    ]
