"""Pictures: functions of arrays and tokens that return a figure of matplotlib, for commands, notebooks and documents.

Figures are made without pyplot, so that nothing has to be closed, and in fonts that have the glyphs of their texts.
Matplotlib is imported when the first one is drawn.
"""

from transformer_jax.plots.drawing import PICTURE_SUFFIXES, check_picture, picture_folder, save_picture, save_pictures
from transformer_jax.plots.model_plots import (
    AttentionExample,
    attention_maps,
    attention_masks,
    attention_of_token,
    attention_page,
    positional_encodings,
)
from transformer_jax.plots.score_plots import confusion_matrix, length_bleu, reliability_diagram, rules_by_place
from transformer_jax.plots.training_plots import learning_curves, learning_rates

__all__ = [
    "PICTURE_SUFFIXES",
    "AttentionExample",
    "attention_maps",
    "attention_masks",
    "attention_of_token",
    "attention_page",
    "check_picture",
    "confusion_matrix",
    "learning_curves",
    "learning_rates",
    "length_bleu",
    "picture_folder",
    "positional_encodings",
    "reliability_diagram",
    "rules_by_place",
    "save_picture",
    "save_pictures",
]
