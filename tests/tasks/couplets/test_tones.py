import pytest

from transformer_jax.tasks.couplets.rules import Tone, tone


@pytest.mark.parametrize("character", "天花人来〇")
def test_level(character):
    assert Tone.LEVEL in tone(character)


@pytest.mark.parametrize(
    ("character", "expected"),
    [
        ("天", Tone.LEVEL),
        ("来", Tone.LEVEL),
        ("水", Tone.OBLIQUE),
        ("月", Tone.OBLIQUE),
        ("长", Tone.EITHER),  # cháng, zhǎng
        ("行", Tone.EITHER),  # xíng, hàng
        ("𠀀", Tone.LEVEL),  # beyond the basic plane
        # No reading.
        ("A", Tone.EITHER),
        ("①", Tone.EITHER),
        ("，", Tone.EITHER),
        ("\ud800", Tone.EITHER),
        ("", Tone.EITHER),
    ],
)
def test_tones(character, expected):
    assert tone(character) == expected


def test_a_neutral_tone_is_either():
    assert tone("们") == Tone.EITHER
