"""Where documents come from: the sources of a corpus, and the filters on them."""
