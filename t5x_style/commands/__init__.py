"""One thin module per verb of the command line: configure, call one room, print."""
