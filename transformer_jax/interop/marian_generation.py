"""generation_config.json of MarianMT and Pegasus as settings of a `Translator`, and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.bundle import TranslatorSettings
from transformer_jax.data.markers import Markers
from transformer_jax.interop.fields import flag, number, unlike, whole
from transformer_jax.interop.marian_layout import Numbering

_NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "constraints": None,
    "guidance_scale": None,
}
"""Fields that change the search, and the values that do not."""
_MARIAN_LENGTH = 512
_LARGEST_PENALTY = 10.0
"""Single precision holds the tenth power of any length."""


def settings_of(
    path: Path, generation: Mapping[str, Any], numbering: Numbering, end: int, max_positions: int
) -> dict[str, Any]:
    """Fields of `TranslatorSettings` with which a search finds what transformers' `generate` does.

    Args:
        path: of the file, for messages.
        generation: its content; what it leaves open is Marian's custom.
        numbering: of the target.
        end: our id of the end of a sentence.
        max_positions: tokens of the longest source.

    Raises:
        UserError: naming the field, if one asks for what this package's search does not do.
    """
    given = {name: value for name, value in generation.items() if value is not None}
    for name, neutral in _NEUTRAL.items():
        if given.get(name, neutral) not in (neutral, [], {}):
            raise unlike(path, given, name, json.dumps(neutral))
    # Theirs counts the start and the end, ours neither.
    new_tokens = whole(path, given, "max_new_tokens", 0, smallest=0)
    max_length = new_tokens + 1 if new_tokens else whole(path, given, "max_length", _MARIAN_LENGTH, smallest=0)
    if max_length < 3:
        raise unlike(path, given, "max_new_tokens" if new_tokens else "max_length", "larger, to hold a token")
    # Beyond the table of positions theirs fails.
    max_length = min(max_length, max_positions + 1)
    return {
        "max_source_length": max_positions,
        "decoding": {
            "conventions": "transformers",
            "beam_size": whole(path, given, "num_beams", 1, smallest=1),
            "alpha": number(path, given, "length_penalty", 1.0, -_LARGEST_PENALTY, _LARGEST_PENALTY),
            "max_length": max_length - 2,
            "max_extra_tokens": max_length,
        },
        "bad_words": _bad_words(path, given, numbering, end),
        "renormalizes": flag(path, given, "renormalize_logits", False),
    }


def generation_json_of(settings: TranslatorSettings, markers: Markers, numbering: Numbering) -> dict[str, Any]:
    """The content of generation_config.json with which `generate` searches as `translate` does.

    Where the settings follow the conventions of transformers, it finds the same; otherwise the length penalty is
    length**alpha, and outputs of all sources have one limit.
    """
    decoding = settings.decoding
    start, end = numbering.there(markers.start), numbering.there(markers.end)
    bad_words = [[numbering.there(token_id) for token_id in word] for word in settings.bad_words]
    padding = [numbering.padding]
    return {
        "bad_words_ids": bad_words if padding in bad_words else [*bad_words, padding],
        "bos_token_id": end if start == numbering.padding else start,
        "decoder_start_token_id": start,
        "early_stopping": False,
        "eos_token_id": end,
        "forced_eos_token_id": end,
        "length_penalty": decoding.alpha,
        "max_length": longest_output(settings),
        "num_beams": decoding.beam_size,
        "pad_token_id": numbering.padding,
        "renormalize_logits": settings.renormalizes,
    }


def longest_output(settings: TranslatorSettings) -> int:
    """Tokens of the longest output, start and end included."""
    decoding = settings.decoding
    by_source = settings.max_source_length + decoding.max_extra_tokens + 1
    return min(decoding.max_length + 2, by_source) if decoding.max_length else by_source


def check_markers(path: Path, values: Mapping[str, Any], numberings: tuple[Numbering, Numbering], end: int) -> None:
    """Do nothing, unless the ids of markers in a file are others than those of the vocabularies.

    Args:
        path: of config.json or generation_config.json, for messages.
        values: its content.
        numberings: of source and target.
        end: our id of the end of a sentence.

    Raises:
        UserError: naming the field.
    """
    ends, paddings = [numberings[1].there(end)], [numbering.padding for numbering in numberings]
    for name, ids in (("eos_token_id", ends), ("forced_eos_token_id", ends), ("pad_token_id", paddings)):
        value = values.get(name)
        if value is not None and not (type(value) is int and value in ids) and value != ends:
            raise unlike(path, values, name, f"{ids[0]}, as in the vocabulary")


def _bad_words(path: Path, generation: Mapping[str, Any], numbering: Numbering, end: int) -> list[list[int]]:
    words = generation.get("bad_words_ids") or [[numbering.padding]]
    if not isinstance(words, list) or not all(
        isinstance(word, list) and word and all(type(item) is int and 0 <= item < numbering.size for item in word)
        for word in words
    ):
        raise unlike(path, generation, "bad_words_ids", f"lists of ids from 0 to {numbering.size - 1}")
    here = [[numbering.here(item) for item in word] for word in words]
    # transformers lets no one forbid the end; ours never produces padding anyway.
    return [word for word in here if word != [end]] or [[0]]
