"""From records to batches of numbers; numpy only, no jax."""

OWN_SETS: dict[str, str] = {}
"""Name of a TFDS set to the module, an `OwnSet`, whose import registers its builder; tasks add theirs."""
