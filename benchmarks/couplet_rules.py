"""Share of lower lines of a trained couplet model that keep the rules, on difficult random upper lines.

Command: python benchmarks/couplet_rules.py --model runs/couplet/model

The upper lines are random: 1 to 32 places, characters of the model's vocabulary (common and rare ones alike),
characters that it lacks (rare Chinese ones, Latin letters, digits), repeated characters, palindromes, punctuation. The
lower lines are judged on their text alone, by `transformer_jax.tasks.couplets.rules`.
"""

import argparse
import json
import random
import time

import transformer_jax
from transformer_jax.data import UNK
from transformer_jax.data.tokenizers import Tokenizer
from transformer_jax.tasks.couplets.rules import NAMES, Rules, judge

MARKS = "，。、；：！？·《》"
OUTSIDE = "㐀㑇㒼𠀀𠮷𡈽龘靐齉AbZ09é"
"""Characters mostly outside the vocabulary: rare Chinese ones of three Unicode blocks, and other scripts."""


def upper_lines(count: int, tokenizer: Tokenizer, seed: int) -> list[str]:
    """`count` random upper lines, determined by seed and vocabulary."""
    draw = random.Random(seed)
    pieces = [tokenizer.piece(token) for token in range(UNK + 1, tokenizer.vocab_size)]
    lines = []
    while len(lines) < count:
        length = draw.randint(1, 32)
        line: list[str] = []
        for _ in range(length):
            kind = draw.random()
            if line and kind < 0.15:
                line.append(draw.choice(line))
            elif kind < 0.25:
                line.append(draw.choice(MARKS))
            elif kind < 0.33:
                line.append(draw.choice(OUTSIDE))
            elif kind < 0.75:
                line.append(pieces[int(len(pieces) * draw.random() ** 4)])  # the first are the most frequent
            else:
                line.append(draw.choice(pieces))
        if draw.random() < 0.05:
            line = [*line, *line[-2::-1]][:32]
        lines.append("".join(line))
    return lines


def main() -> None:
    """Write a JSON object to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="a couplet model's folder")
    parser.add_argument("--lines", type=int, default=10_000, metavar="N", help="upper lines [10000]")
    parser.add_argument("--rules", metavar="RULES", help="see transformer-jax couplet [the model's]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the upper lines [0]")
    arguments = parser.parse_args()
    writer = transformer_jax.load(arguments.model)
    rules = Rules.parse(writer.settings.rules if arguments.rules is None else arguments.rules)
    uppers = upper_lines(arguments.lines, writer.tokenizer.source, arguments.seed)
    start = time.perf_counter()
    found = writer.search(uppers, rules=rules)
    seconds = time.perf_counter() - start
    verdicts = [judge(upper, best.text) for upper, (best, *_) in zip(uppers, found, strict=True)]
    hard = [name for name in NAMES if rules.is_hard(name)]
    report = {
        "lines": len(uppers),
        "keeps": {name: sum(verdict.keeps(name) for verdict in verdicts) / len(verdicts) for name in NAMES},
        "keeps_all_hard": sum(all(map(verdict.keeps, hard)) for verdict in verdicts) / len(verdicts),
        "gave_up": sum(bool(best.gave_up) for best, *_ in found),
        "rules": str(rules),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
