"""The encoder-decoder Transformer of *Attention Is All You Need* in JAX.

The public names are listed here, once for readers and type checkers and once for the interpreter, which imports
each when it is first asked for: `transformer-jax --help` need not wait for JAX.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_jax.attention import causal_mask as causal_mask
    from transformer_jax.attention import dot_product_attention as dot_product_attention
    from transformer_jax.attention import padding_mask as padding_mask
    from transformer_jax.attention import scaled_dot_product_attention as scaled_dot_product_attention
    from transformer_jax.attention import segment_mask as segment_mask
    from transformer_jax.bundle import Classification as Classification
    from transformer_jax.bundle import CoupletWriter as CoupletWriter
    from transformer_jax.bundle import TextClassifier as TextClassifier
    from transformer_jax.bundle import Translation as Translation
    from transformer_jax.bundle import Translator as Translator
    from transformer_jax.bundle import load as load
    from transformer_jax.bundle import save_bundle as save_bundle
    from transformer_jax.couplets import Rules as Rules
    from transformer_jax.couplets import Verdict as Verdict
    from transformer_jax.couplets import explain as explain
    from transformer_jax.couplets import judge as judge
    from transformer_jax.errors import UserError as UserError
    from transformer_jax.generation import Generator as Generator
    from transformer_jax.generation import SearchOptions as SearchOptions
    from transformer_jax.layers import DecoderLayer as DecoderLayer
    from transformer_jax.layers import EncoderLayer as EncoderLayer
    from transformer_jax.layers import FeedForward as FeedForward
    from transformer_jax.layers import MultiHeadAttention as MultiHeadAttention
    from transformer_jax.models import Classifier as Classifier
    from transformer_jax.models import Decoder as Decoder
    from transformer_jax.models import Encoder as Encoder
    from transformer_jax.models import ModelConfig as ModelConfig
    from transformer_jax.models import Seq2Seq as Seq2Seq
    from transformer_jax.models import split as split
    from transformer_jax.positions import sinusoidal_positions as sinusoidal_positions
    from transformer_jax.prediction import Predictor as Predictor
    from transformer_jax.writing import Reply as Reply

_NAMES = {
    "attention": (
        "causal_mask",
        "dot_product_attention",
        "padding_mask",
        "scaled_dot_product_attention",
        "segment_mask",
    ),
    "bundle": (
        "Classification",
        "CoupletWriter",
        "TextClassifier",
        "Translation",
        "Translator",
        "load",
        "save_bundle",
    ),
    "couplets": ("Rules", "Verdict", "explain", "judge"),
    "errors": ("UserError",),
    "generation": ("Generator", "SearchOptions"),
    "layers": ("DecoderLayer", "EncoderLayer", "FeedForward", "MultiHeadAttention"),
    "models": ("Classifier", "Decoder", "Encoder", "ModelConfig", "Seq2Seq", "split"),
    "positions": ("sinusoidal_positions",),
    "prediction": ("Predictor",),
    "writing": ("Reply",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)

try:
    __version__ = importlib.metadata.version("transformer-jax")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
