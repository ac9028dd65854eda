"""The verbs that work on text: tokenizer, cache."""
