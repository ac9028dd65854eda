"""The files of a run, written and read, and its console line."""
