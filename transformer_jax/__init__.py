"""The encoder-decoder Transformer of *Attention Is All You Need* in JAX.

The stub `__init__.pyi` lists the public names. Each is imported when it is first used, so that `transformer-jax --help`
does not wait for JAX.
"""

import importlib.metadata

import lazy_loader

import transformer_jax.tasks  # noqa: F401  (registers our tasks; imports no JAX)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = importlib.metadata.version("transformer-jax")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"
