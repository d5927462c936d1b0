"""The table of algorithms, the loop, the optimiser, checkpoints."""
