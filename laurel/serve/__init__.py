"""The wire: a model behind OpenAI's and vLLM's routes, sampled by our own decoders."""
