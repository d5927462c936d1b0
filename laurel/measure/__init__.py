"""Statistics: intervals, pass@k, majority votes; agreement, rankings, annotators, populations,
judges.
"""
