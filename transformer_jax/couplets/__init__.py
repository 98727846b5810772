"""The rules of Chinese couplets (对联): a judge of finished lines, and constraints on the search for them."""

from transformer_jax.couplets.explain import explain
from transformer_jax.couplets.judge import Verdict, asked_tones, judge, rule_shares
from transformer_jax.couplets.plan import Plan, UpperLine, make_plan
from transformer_jax.couplets.processor import keep_rules
from transformer_jax.couplets.rules import NAMES, Rules
from transformer_jax.couplets.tones import Tone, tone
from transformer_jax.couplets.vocabulary import Vocabulary, vocabulary_of

__all__ = [
    "NAMES",
    "Plan",
    "Rules",
    "Tone",
    "UpperLine",
    "Verdict",
    "Vocabulary",
    "asked_tones",
    "explain",
    "judge",
    "keep_rules",
    "make_plan",
    "rule_shares",
    "tone",
    "vocabulary_of",
]
