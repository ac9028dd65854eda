"""What a run leaves: written, read again, and its console line."""
