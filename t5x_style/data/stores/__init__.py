"""Token stores: their files, and those that a run needs."""
