"""The model: load and save, chat <-> tokens with spans, log-probabilities, the sampler."""
