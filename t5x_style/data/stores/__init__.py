"""Token stores: what they hold, and which of them a run needs."""
