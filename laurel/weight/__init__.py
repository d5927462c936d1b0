"""Rewards -> weights. Pure functions that know nothing of the policy."""
