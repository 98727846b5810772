"""The data pipeline, from records to batches of token ids, without JAX."""
