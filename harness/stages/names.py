"""Names of the stages, in the order in which a forward pass meets them."""

STAGES = (
    "embedding",
    "attn_norm",
    "qkv_matmul",
    "qkv_bias",
    "q_post_rope",
    "k_post_rope",
    "attn_scores",
    "attn_softmax",
    "attention",
    "attn_out",
    "post_attn_residual",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_silu",
    "ffn_swigl",
    "ffn_out",
    "post_ffn_residual",
    "moe_router",
    "moe_ffn_out",
    "moe_router_indices",
    "final_norm",
    "lm_head",
)
ALIASES = {"layer_output": "post_ffn_residual"}
WHOLE_MODEL = ("final_norm", "lm_head")
PER_LAYER = tuple(stage for stage in STAGES if stage not in WHOLE_MODEL)

# What every backend provides, however much it fuses (DESIGN.md, invariant 3).
REQUIRED = (
    "moe_router",
    "moe_router_indices",
    "moe_ffn_out",
    "post_attn_residual",
    "post_ffn_residual",
    "final_norm",
    "lm_head",
)
