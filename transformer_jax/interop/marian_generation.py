"""generation_config.json of MarianMT and Pegasus as settings of a `Translator`, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.bundle import TranslatorSettings
from transformer_jax.data.markers import Markers
from transformer_jax.errors import UserError
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
    for name, neutral in _NEUTRAL.items():
        if generation.get(name) not in (None, neutral):
            raise _unlike(path, name, generation[name], f"{neutral!r}")
    alpha = generation.get("length_penalty")
    if alpha is not None and type(alpha) not in (int, float):
        raise _unlike(path, "length_penalty", alpha, "a number")
    # Theirs counts the start and the end, ours neither.
    new_tokens = _whole(path, generation, "max_new_tokens", 0, smallest=0)
    max_length = new_tokens + 1 if new_tokens else _whole(path, generation, "max_length", _MARIAN_LENGTH, smallest=0)
    if max_length < 3:
        raise _unlike(path, "max_new_tokens" if new_tokens else "max_length", max_length, "larger, to hold a token")
    # Beyond the table of positions theirs fails.
    max_length = min(max_length, max_positions + 1)
    renormalizes = generation.get("renormalize_logits") or False
    if renormalizes not in (True, False):
        raise _unlike(path, "renormalize_logits", renormalizes, "true or false")
    return {
        "max_source_length": max_positions,
        "decoding": {
            "conventions": "transformers",
            "beam_size": _whole(path, generation, "num_beams", 1),
            "alpha": 1.0 if alpha is None else float(alpha),
            "max_length": max_length - 2,
            "max_extra_tokens": max_length,
        },
        "bad_words": _bad_words(path, generation, numbering, end),
        "renormalizes": bool(renormalizes),
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


def token_id(path: Path, config: Mapping[str, Any], name: str, size: int) -> int:
    """The id in a field.

    Raises:
        UserError: naming the field, if it is no id of a vocabulary of that size.
    """
    value = config.get(name)
    if type(value) is not int or not 0 <= value < size:
        raise _unlike(path, name, value, f"an id from 0 to {size - 1}")
    return value


def _bad_words(path: Path, generation: Mapping[str, Any], numbering: Numbering, end: int) -> list[list[int]]:
    words = generation.get("bad_words_ids") or [[numbering.padding]]
    if not isinstance(words, list) or not all(
        isinstance(word, list) and word and all(type(item) is int and 0 <= item < numbering.size for item in word)
        for word in words
    ):
        raise _unlike(path, "bad_words_ids", words, f"lists of ids from 0 to {numbering.size - 1}")
    here = [[numbering.here(item) for item in word] for word in words]
    # transformers lets no one forbid the end; ours never produces padding anyway.
    return [word for word in here if word != [end]] or [[0]]


def _whole(path: Path, generation: Mapping[str, Any], name: str, default: int, *, smallest: int = 1) -> int:
    value = generation.get(name)
    if value is None:
        return default
    if type(value) is not int or value < smallest or value >= 2**31:
        raise _unlike(path, name, value, f"a whole number from {smallest} on")
    return value


def _unlike(path: Path, name: str, value: object, remedy: str) -> UserError:
    return UserError(f"{path}: {name} is {value!r}, but must be {remedy}; change or remove the field.")
