"""Where documents come from: files of every format, and the filters on them."""
