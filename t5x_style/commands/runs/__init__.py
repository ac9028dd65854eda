"""The verbs that work on one run: compile, train, evaluate, generate."""
