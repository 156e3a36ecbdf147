"""The model card (README.md) of a saved model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentei.families import family_of
from sentei.plan import ModelShape, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def model_card(model: PreTrainedModel, plan: Plan | None, *, bundled: bool, legal: list[str]) -> str:
    """Markdown with YAML front matter: what was removed, how to load it, what to beware of.

    Args:
        model: as it is saved.
        plan: that it was made by, if known.
        bundled: needs the modelling file beside it.
        legal: names of licence files that were copied from the base model.
    """
    base = getattr(model.config, "sentei_source", None)
    shape = family_of(model.config).shape(model.config)
    hub_id = [f"base_model: {base}"] if base and base.count("/") == 1 else []
    facts = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [pruned, sentei]"]
    front = ["---", *hub_id, *facts, "---"]
    terms = f"The licence of the base model holds for these weights{': see ' + ', '.join(legal) if legal else ''}."
    parts = [
        "\n".join(front),
        f"# {base or 'A language model'}, pruned",
        _summary(shape, plan),
        f"## Load it\n\n{_how_to_load(bundled)}",
        f"## Blocks\n\n{_table(shape, plan)}",
        f"## Limitations\n\n{_LIMITS}",
        f"## Licence\n\n{terms}" + (" The bundled `modeling_sentei.py` is Apache-2.0." if bundled else ""),
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = (
    "Pruning removes knowledge and skill unevenly: what the calibration text did not exercise suffers most. "
    "Measure the model on your own task before use. It inherits the biases and limits of the base model."
)


def _summary(shape: ModelShape, plan: Plan | None) -> str:
    lines = [f"{shape.params():,} parameters, {shape.block_params():,} of them in blocks."]
    if plan is not None:
        removed = 1 - plan.shape().block_params() / plan.dense.block_params()
        lines += [
            f"Pruned by sentei: {removed:.1%} of {plan.dense.block_params():,} block params removed "
            f"({plan.budget.describe()}).",
            f"Method `{plan.method}`: score {plan.score}, allocation {plan.allocation}, "
            f"compensation {plan.compensation}. `plan.json` says what was kept and why.",
        ]
    return "\n".join(lines)


def _how_to_load(bundled: bool) -> str:
    flag = ", trust_remote_code=True" if bundled else ""
    code = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY"{flag})',
        f'model = AutoModelForCausalLM.from_pretrained("DIRECTORY"{flag})',
        "```",
    ]
    why = "Blocks differ in size, which no stock class can hold: `modeling_sentei.py` builds them from stock layers."
    return "\n".join([*code, "", why if bundled else "This is a stock class; no custom code is needed."])


def _table(shape: ModelShape, plan: Plan | None) -> str:
    kept = plan.shape().blocks if plan is not None else shape.blocks
    rows = [f"| {i} | {b.kv_groups} | {b.heads_per_group * b.kv_groups} | {b.ffn} |" for i, b in enumerate(kept)]
    if plan is not None:
        why: list[Any] = [block.reason.replace("|", "/") for block in plan.blocks]
        rows = [f"{row} {reason} |" for row, reason in zip(rows, why, strict=True)]
        return "\n".join(["| block | KV groups | query heads | FFN channels | why |", "|--:|--:|--:|--:|---|", *rows])
    return "\n".join(["| block | KV groups | query heads | FFN channels |", "|--:|--:|--:|--:|", *rows])
