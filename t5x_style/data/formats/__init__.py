"""File formats: which files a split names, their parts, and their records."""
