"""From stores and a blend to rows of tokens."""
