"""The account against torch's own counter, on the same shapes as transformers builds them.

Neither library is needed for anything else, so `tools/check_flops` makes an environment that has
them and runs this file; elsewhere it is skipped. Models lie on the meta device: shapes without
numbers, so 50 billion parameters take no memory.
"""

import dataclasses

import pytest

from t5x_style.accounting import (
    Architecture,
    bloomberggpt,
    total_parameters,
    training_flops_per_token,
)

_WHY = "tools/check_flops has torch and transformers"
torch = pytest.importorskip("torch", reason=_WHY)
flop_counter = pytest.importorskip("torch.utils.flop_counter", reason=_WHY)
transformers = pytest.importorskip("transformers", reason=_WHY)

LLAMA = Architecture(128_256, 32, 4096, 14_336, 32, kv_heads=8, tied_head=False)
ARCHITECTURES = {
    "gpt2": Architecture(
        50_257, 12, 768, 3072, 12, positions="learned", max_length=1024, norm="layer",
        feed_forward="gelu", biases=True,
    ),
    "bloomberggpt": bloomberggpt.ARCHITECTURE,
    "llama_3_8b": LLAMA,
    "llama_3.2_1b": Architecture(128_256, 16, 2048, 8192, 32, kv_heads=8),
    "mistral, a window of 512": dataclasses.replace(LLAMA, vocab_size=32_000, window=512),
    "qwen3_0.6b": Architecture(
        151_936, 28, 1024, 3072, 16, kv_heads=8, head_dim=128, qk_norm=True
    ),
}  # fmt: skip


def on_the_meta_device(a: Architecture):
    """The model that transformers makes of that shape, with attention written out."""
    if a.positions == "learned":
        config = transformers.GPT2Config(
            vocab_size=a.vocab_size, n_positions=a.max_length, n_embd=a.d_model,
            n_layer=a.layers, n_head=a.heads, n_inner=a.d_ff,
        )  # fmt: skip
    elif a.positions == "alibi":
        config = transformers.BloomConfig(
            vocab_size=a.vocab_size, hidden_size=a.d_model, n_layer=a.layers, n_head=a.heads
        )
    else:
        kind = transformers.MistralConfig if a.window else transformers.LlamaConfig
        kind = transformers.Qwen3Config if a.qk_norm else kind
        config = kind(
            vocab_size=a.vocab_size, hidden_size=a.d_model, intermediate_size=a.d_ff,
            num_hidden_layers=a.layers, num_attention_heads=a.heads,
            num_key_value_heads=a.kv_heads, head_dim=a.head_dim, tie_word_embeddings=a.tied_head,
            **({"sliding_window": a.window} if a.window else {}),
        )  # fmt: skip
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_full_is_what_torch_counts(name):
    """Forward and backward pass of two sequences; the counter counts matrix products alone."""
    architecture = ARCHITECTURES[name]
    batch, length = 2, 1024
    model = on_the_meta_device(architecture)
    assert sum(parameter.numel() for parameter in model.parameters()) == total_parameters(
        architecture
    )
    tokens = torch.zeros((batch, length), dtype=torch.long, device="meta")
    counter = flop_counter.FlopCounterMode(display=False)
    with counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    per_token = counter.get_total_flops() / (batch * length)
    account = training_flops_per_token(architecture, length, "full")
    print(f"{name}: torch {per_token:,.0f} FLOPs/token, full {account:,.0f}")
    assert per_token == account
