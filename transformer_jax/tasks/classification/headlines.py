"""Headlines in four topics, composed from a lexicon and a grammar of our own: a set that needs no download.

One word rarely decides: shares, teams and snow all fall, and records, stars, waves and fronts belong to several topics.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import product
from string import Formatter
from typing import overload

from transformer_jax.system import UserError
from transformer_jax.tasks.classification.labelled import Labelled

SPLITS = ("train", "validation", "test")

_TRAIN_SIZE = 20_000
_HELD_OUT_SIZE = 1_000
_HELD_OUT_PERCENT = 5
_UNSEEN_WORD_PERCENT = 12  # of the names; other unseen words are listed

_PLAIN = {
    # Shared by all topics, whose own words must decide.
    "count": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    "period": ("a week", "a month", "two years", "a decade", "half a century", "thirty years"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "the weekend"),
    "mood": ("hopes", "fears", "doubts", "warnings", "questions", "surprise"),
    "change": ("rises", "falls", "slips", "climbs", "recovers", "drops again"),
}
_NAMES = {
    "place": (
        ("Al", "Bran", "Cor", "Dun", "Esk", "Fal", "Gar", "Hol", "Ing", "Kes", "Lan", "Mor", "Nor", "Os", "Pel", "Rud"),
        ("bridge", "bury", "field", "ford", "haven", "mere", "mouth", "stow", "ton", "wick"),
    ),
    "person": (
        ("Adler", "Berg", "Cald", "Dray", "Ells", "Finn", "Grant", "Hart", "Iver", "Kess", "Lund", "Mars", "Quill"),
        ("ley", "man", "ner", "son", "win", "worth"),
    ),
    "code": (("A", "B", "K", "M", "R", "T", "X", "Z"), tuple(f"-{number}" for number in range(2, 40))),
}
_TOPICS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # Slot to the words of training, and those that only validation and test have.
    "markets": {
        "theme": (
            ("profit", "share price", "bond yield", "exchange rate", "dividend", "merger", "oil price", "loan",
             "budget", "takeover", "retail sales", "tax cut", "stock", "wage deal", "interest rate", "debt"),
            ("gold price", "mortgage rate", "share sale", "trade deficit", "tax break", "tariff", "payroll", "revenue"),
        ),
        "body": (
            ("Savings Bank", "Motors", "Insurance", "Steel", "Airways", "Foods", "Holdings", "Mining", "Capital"),
            ("Rail", "Loan Bank", "Shipping", "Credit"),
        ),
        "role": (
            ("investor", "banker", "trader", "broker", "treasurer", "auditor"),
            ("shareholder", "lender", "economist"),
        ),
    },
    "science": {
        "theme": (
            ("gene", "telescope", "enzyme", "fossil", "particle beam", "comet", "protein", "galaxy", "vaccine trial",
             "laser", "neutron star", "black hole", "bacterium", "space probe", "brain scan", "molecule", "old skull"),
            ("microscope", "neutrino", "genome", "asteroid", "virus", "spectrum", "star cluster", "antibody"),
        ),
        "body": (
            ("Observatory", "Laboratory", "Research Centre", "Museum of Nature", "Space Agency", "Medical School"),
            ("Science Academy", "Space Centre", "Botanical Institute"),
        ),
        "role": (
            ("astronomer", "biologist", "chemist", "physicist", "geologist", "researcher"),
            ("botanist", "zoologist", "astrophysicist"),
        ),
    },
    "sports": {
        "theme": (
            ("title", "penalty", "cup final", "relay", "semi-final", "goal", "season opener", "sprint", "derby",
             "free kick", "handball match", "league game", "play-off", "marathon", "tie-break", "away win", "transfer"),
            ("football match", "cup game", "quarter-final", "hat-trick", "half marathon", "home win", "medal", "duel"),
        ),
        "body": (
            ("United", "Rovers", "City", "Wanderers", "Athletic", "Harriers", "Tigers", "Rowing Club"),
            ("Lions", "Cycling Club", "Town", "Albion"),
        ),
        "role": (
            ("striker", "goalkeeper", "coach", "captain", "sprinter", "referee"),
            ("defender", "midfielder", "head coach"),
        ),
    },
    "weather": {
        "theme": (
            ("heat wave", "snowstorm", "hail", "drought", "thunderstorm", "night frost", "fog", "rainfall", "downpour",
             "cold front", "gale", "sleet", "tropical storm", "warm spell", "black ice", "high tide", "humid air"),
            ("cold wave", "hailstorm", "snowfall", "warm front", "ground frost", "drizzle", "rainstorm", "blizzard"),
        ),
        "body": (
            ("Met Office", "Weather Service", "Flood Centre", "Storm Warning Centre", "Coast Guard"),
            ("Weather Station", "Storm Service", "Avalanche Service"),
        ),
        "role": (
            ("forecaster", "meteorologist", "storm chaser", "weather watcher"),
            ("weatherman", "flood warden"),
        ),
    },
}  # fmt: skip
_SHARED_PATTERNS = (
    "{theme} puts {place} on the front page",
    "Record {theme} in {place} after {period}",
    "{place} waits for {theme} on {day}",
    "{mood} in {place} over {theme}",
    "{role} {person} speaks of {theme}",
    "{place} {body} has {count} reasons to watch {theme}",
    "No end of {theme} in sight, says {role} {person}",
    "{role} from {place} stunned by {theme}",
    "Strong {theme} brings {mood} to {place}",
    "{place} {body}: {theme} {change}",
    "First {theme} in {period} for {place}",
    "A wave of {mood} after {theme} in {place}",
)
_PATTERNS = {
    "markets": (
        "{place} {body} shares fall {count} percent",
        "{place} {body} cuts {count} hundred jobs",
        "Stars of the {place} exchange fall after weak {theme}",
        "{place} {body} to buy rival for {count} billion",
        "Analysts see {theme} rise by {count} percent",
        "{person} leaves board of {place} {body}",
        "Wave of selling hits {place} {body}",
        "{place} {body} reports record {theme}",
        "Pressure on {place} {body} as {theme} {change}",
        "Strong front of buyers lifts {place} stocks",
    ),
    "science": (
        "Star near {code} falls into black hole",
        "{role} at {place} finds new {theme}",
        "{place} {body} launches probe to {code}",
        "Study at {place} links {theme} to sleep",
        "Wave from distant star {code} puzzles {place} {body}",
        "{person} wins prize for work on {theme}",
        "Ancient {theme} found near {place}",
        "Pressure in cells may rise with {theme}, {role} finds",
        "Record cold in the laboratory: {place} team traps {theme}",
        "Theory of {person} confirmed by {theme}",
    ),
    "sports": (
        "{place} {body} beat {place} by {count} goals",
        "{place} fall to {place} {body} in extra time",
        "Star {role} {person} out for {count} weeks",
        "{person} sets record in {place}",
        "{place} front line too strong for {body}",
        "{person} saves {theme} for {place} {body}",
        "{role} {person} signs with {place} {body}",
        "Pressure on {role} after {place} lose to {place}",
        "Wave of injuries hits {place} {body}",
        "{place} {body} draw with {place} on {day}",
    ),
    "weather": (
        "{theme} to fall on {place} by {day}",
        "Record high of {count} and thirty degrees in {place}",
        "{theme} closes road to {place}",
        "Front moves in from {place}, {theme} likely",
        "Falling pressure brings {theme} to {place}",
        "{count} inches of snow in {place}",
        "{place} {body} warns of {theme}",
        "Stars hidden as {theme} covers {place}",
        "Waves up to {count} metres off {place}",
        "Sunny {day} ahead for {place}",
    ),
}

CLASSES = tuple(_TOPICS)


class Headlines(Sequence[Labelled]):
    """Headlines labelled markets, science, sports or weather, all four equally likely.

    A fixed hash gives every headline to one split. `train` draws 20,000 with repetition; `validation` and `test` are
    1,000 different headlines each. A third of the names and nouns in these two occur in no training headline; where
    nothing else indicates the topic, no model can be sure.
    """

    def __init__(self, split: str) -> None:
        """Prepare a split.

        Raises:
            UserError: for an unknown split.
        """
        if split not in SPLITS:
            raise UserError(f"headlines have no split {split!r}, only {', '.join(SPLITS)}.")
        self._held_out = None if split == "train" else _held_out(split)

    def __len__(self) -> int:
        return _TRAIN_SIZE if self._held_out is None else len(self._held_out)

    @overload
    def __getitem__(self, index: int) -> Labelled: ...
    @overload
    def __getitem__(self, index: slice) -> list[Labelled]: ...
    def __getitem__(self, index: int | slice) -> Labelled | list[Labelled]:
        """The headline at an index."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return _draw("train", index) if self._held_out is None else self._held_out[index]


def split_of(text: str) -> str:
    """The split that a headline belongs to."""
    percent = _hash(text) % 100
    if percent >= 2 * _HELD_OUT_PERCENT:
        return "train"
    return "validation" if percent < _HELD_OUT_PERCENT else "test"


@cache
def words(topic: str, slot: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words that may fill a slot: those of training, and those that only validation and test have."""
    if slot in _PLAIN:
        return _PLAIN[slot], ()
    if slot not in _NAMES:
        return _TOPICS[topic][slot]
    names = ["".join(parts) for parts in product(*_NAMES[slot])]
    unseen = [name for name in names if _hash(name) % 100 < _UNSEEN_WORD_PERCENT]
    return tuple(name for name in names if name not in unseen), tuple(unseen)


@cache
def _held_out(split: str) -> tuple[Labelled, ...]:
    headlines: dict[Labelled, None] = {}  # a set that keeps the order
    index = 0
    while len(headlines) < _HELD_OUT_SIZE:
        headlines[_draw(split, index)] = None
        index += 1
    return tuple(headlines)


def _draw(split: str, index: int) -> Labelled:
    """The headline of `split` at a place of its random stream."""
    attempt = 0
    while True:
        bits = _hash(f"{split} {index} {attempt}")
        bits, topic = divmod(bits, len(CLASSES))
        text = _compose(bits, CLASSES[topic], with_unseen=split != "train")
        if split_of(text) == split:
            return Labelled(text, CLASSES[topic])
        attempt += 1


def _compose(bits: int, topic: str, *, with_unseen: bool) -> str:
    """A headline; each choice consumes some of the random bits."""
    bits, kind = divmod(bits, 5)
    patterns = _SHARED_PATTERNS if kind == 0 else _PATTERNS[topic]
    bits, choice = divmod(bits, len(patterns))
    text = ""
    for literal, slot, _, _ in Formatter().parse(patterns[choice]):
        text += literal
        if slot:
            seen, unseen = words(topic, slot)
            bits, pool = divmod(bits, 3)
            candidates = unseen if with_unseen and unseen and pool == 0 else seen
            bits, choice = divmod(bits, len(candidates))
            text += candidates[choice]
    return text[0].upper() + text[1:]


def _hash(text: str) -> int:
    """512 random bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode()).digest(), "big")
