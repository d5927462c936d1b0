"""Log-probabilities and weights -> values to minimise. Pure functions that know nothing of
rewards.
"""
