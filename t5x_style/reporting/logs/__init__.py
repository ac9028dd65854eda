"""The .jsonl files of a run: appended to, read, mended; and what they say of its processes."""
