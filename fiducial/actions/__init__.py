"""One file per verb of the command line, written once for every task."""
