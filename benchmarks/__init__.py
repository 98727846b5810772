"""Benchmarks against other systems: `python -m benchmarks NAME`, from a checkout."""
