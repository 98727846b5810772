"""Errors, files, runtime settings and distributed processes: what all other packages build on."""
