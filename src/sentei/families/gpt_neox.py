"""GPT-NeoX and Pythia: both parts read what enters the block; LayerNorms, biases, no gate; q, k and v as one."""

from sentei.families.base import Family
from sentei.families.parts import QKV, Fused, Part

FAMILY = Family(
    name="gpt_neox",
    prefix="GPTNeoX",
    attention_part=Part(
        "attention",
        "input_layernorm",
        matrices={name: f"query_key_value.{name}" for name in QKV} | {"o_proj": "dense"},
        fused={"query_key_value": Fused(QKV, by_head=True)},
    ),
    ffn_part=Part(
        "mlp", "post_attention_layernorm", matrices={"up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"}
    ),
    blocks_at="gpt_neox.layers",
    norm_at="gpt_neox.final_layer_norm",
    embedding_at="gpt_neox.embed_in",
    parallel="use_parallel_residual",
    layer_norm=True,
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias=True,
    resized=True,
    uniform_as=("gpt_neox",),
    features=(
        *("use_parallel_residual", "layer_norm_eps", "hidden_dropout", "classifier_dropout", "is_decoder"),
        *("rotary_pct", "rotary_emb_base", "partial_rotary_factor"),
    ),
    heads="exact",
    aliases={"embed_out.weight": "lm_head.weight", "lm_head.weight": "embed_out.weight"},  # by version of transformers
)
