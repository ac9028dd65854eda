"""Small decoders that between them use every option."""

from t5x_style.accounting import Architecture

GPT2 = Architecture(
    vocab_size=40,
    layers=2,
    d_model=24,
    d_ff=48,
    heads=3,
    positions="learned",
    max_length=12,
    norm="layer",
    feed_forward="gelu",
    biases=True,
)
LLAMA = Architecture(
    vocab_size=40,
    layers=3,
    d_model=24,
    d_ff=40,
    heads=4,
    kv_heads=2,
    head_dim=10,
    positions="rope",
    rope_theta=100.0,
    norm="rms",
    norm_epsilon=1e-2,
    feed_forward="swiglu",
    qk_norm=True,
    parallel_block=True,
    tied_head=False,
    logit_softcap=3.0,
)
BLOOMBERG = Architecture(
    vocab_size=40,
    layers=2,
    d_model=24,
    d_ff=48,
    heads=6,
    positions="alibi",
    norm="layer",
    feed_forward="gelu",
    biases=True,
    embedding_norm=True,
)
SQUARED_RELU = Architecture(
    vocab_size=40,
    layers=2,
    d_model=24,
    d_ff=48,
    heads=2,
    kv_heads=1,
    positions="none",
    norm="layer",
    feed_forward="relu2",
    biases=False,
    tied_head=False,
)
SLIDING_WINDOW = Architecture(
    vocab_size=40,
    layers=2,
    d_model=24,
    d_ff=48,
    heads=4,
    kv_heads=2,
    positions="rope",
    window=3,
    norm="rms",
    feed_forward="swiglu",
)
SWIGLU_WITH_BIASES = Architecture(
    vocab_size=40,
    layers=2,
    d_model=24,
    d_ff=48,
    heads=4,
    kv_heads=2,
    positions="rope",
    norm="rms",
    feed_forward="swiglu",
    biases=True,
)
ARCHITECTURES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "bloomberg": BLOOMBERG,
    "squared_relu": SQUARED_RELU,
    "sliding_window": SLIDING_WINDOW,
    "swiglu_with_biases": SWIGLU_WITH_BIASES,
}
