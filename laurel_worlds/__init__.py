"""Exact worlds: Markov decision processes and language models small enough to list.

The right answer is known.
"""
