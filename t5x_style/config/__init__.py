"""The gin front end: files, flags, names, types, help. All that knows gin's insides."""
