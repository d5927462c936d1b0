"""Rewards -> weights: pure functions that do not depend on the policy."""
