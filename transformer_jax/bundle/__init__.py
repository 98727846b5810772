"""A trained model as one directory, and as an object that works on text."""

from transformer_jax.bundle.classifier import Classification, TextClassifier, TextClassifierSettings
from transformer_jax.bundle.couplet_writer import CoupletWriter, CoupletWriterSettings
from transformer_jax.bundle.seq2seq import Score
from transformer_jax.bundle.stacks import TransformerStacks, TransformerStacksSettings
from transformer_jax.bundle.storage import load, save_bundle
from transformer_jax.bundle.translator import Alignment, Translation, Translator, TranslatorSettings

__all__ = [
    "Alignment",
    "Classification",
    "CoupletWriter",
    "CoupletWriterSettings",
    "Score",
    "TextClassifier",
    "TextClassifierSettings",
    "TransformerStacks",
    "TransformerStacksSettings",
    "Translation",
    "Translator",
    "TranslatorSettings",
    "load",
    "save_bundle",
]
