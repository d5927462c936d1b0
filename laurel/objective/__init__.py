"""Log-probabilities and weights -> values to minimise.

Pure functions: they take tensors, return tensors, and do not depend on how a reward was computed.
"""
