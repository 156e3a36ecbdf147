"""GPT-2: LayerNorms, biases everywhere, no gate, learnt positions; q, k and v as one, and all matrices transposed."""

from sentei.families.base import Family
from sentei.families.parts import QKV, Fused, Part

FAMILY = Family(
    name="gpt2",
    prefix="GPT2",
    classes=("GPT2Config", "GPT2Model", "GPT2LMHeadModel"),
    attention_part=Part(
        "attn",
        "ln_1",
        matrices={name: f"c_attn.{name}" for name in QKV} | {"o_proj": "c_proj"},
        fused={"c_attn": Fused(QKV)},
        attributes={"num_heads": "heads", "split_size": "queries"},
    ),
    ffn_part=Part("mlp", "ln_2", matrices={"up_proj": "c_fc", "down_proj": "c_proj"}),
    blocks_at="transformer.h",
    norm_at="transformer.ln_f",
    embedding_at="transformer.wte",
    layer_norm=True,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    positions="max_position_embeddings",
    ffn_size="n_inner",
    resized=True,
    transposed=True,
    uniform_as=("gpt2",),
    features=(
        *("n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function", "layer_norm_epsilon"),
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
        *("reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation"),
        *("summary_proj_to_labels", "summary_first_dropout"),
    ),
    heads="exact",
)
