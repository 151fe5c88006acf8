"""Facts as people write them down: one on the command line, many in a file. No model, no store, no torch."""
