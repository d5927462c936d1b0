"""Statistics: intervals, pass@k, majority votes."""
