"""How a token store is built, in a child process."""
