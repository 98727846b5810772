"""From records to batches of numbers; numpy only, no jax."""
