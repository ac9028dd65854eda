"""Small tokenizer.json files of the families that are published."""

import json

# That of Llama 3, as its tokenizer.json has it.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(texts, kind, special=("<|endoftext|>",)):
    """A small tokenizer.json of one of the two families, as the library's own trainer makes it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if kind == "metaspace":
        model = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        model.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        special = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
        alphabet = []
    else:
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "llama 3":
            model.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        model.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    plain = json.loads(model.to_str())
    # The bytes are pieces of the model in published files, not tokens that a decoder leaves out.
    plain["added_tokens"] = [
        token for token in plain["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return plain
