"""How good is it: greedy, pass@k, majority@k, always with intervals."""
