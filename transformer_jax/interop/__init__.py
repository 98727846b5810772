"""Weights in and out of other systems."""
