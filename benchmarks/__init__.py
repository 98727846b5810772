"""Ours beside its peers: `python -m benchmarks NAME`, from a checkout."""
