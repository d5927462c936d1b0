"""The model: load and save, chat <-> tokens with spans, log-probabilities, adapters, scorers."""
