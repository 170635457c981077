"""transformers in this process: the embedded default, batch-invariant."""
