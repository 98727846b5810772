"""A trained model as one directory, and as an object that works on text."""

from transformer_jax.bundle.storage import load, save_bundle
from transformer_jax.bundle.translator import Alignment, Score, Translation, Translator, TranslatorSettings

__all__ = ["Alignment", "Score", "Translation", "Translator", "TranslatorSettings", "load", "save_bundle"]
