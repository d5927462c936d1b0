"""AI feedback: a model asked which answer is better, and what its verdicts are worth."""
