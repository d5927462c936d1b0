"""The sample is kept, no gradient is taken: best-of-n, votes, process-reward search, curves."""
