"""Which prompt for which query, learned from logs alone (Prompt-OIRL).

Logs, rewards, the choice, and what it is worth.
"""
