"""The engine: a Llama-like model written out for speed, for training steps and for sampling."""
