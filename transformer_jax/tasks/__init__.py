"""Tasks: what each adds to the one training loop, and the model that comes out of it."""
