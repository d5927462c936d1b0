"""Records, results, configuration, run directory, workers and sandbox. No torch at import."""
