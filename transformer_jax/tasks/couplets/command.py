"""transformer-jax couplet: write lower lines to upper lines."""

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformer_jax.system import UserError
from transformer_jax.tasks.command_line import (
    PLOTS_OPTION,
    add_sampling,
    check_options,
    config_of,
    progress,
    require_one_process,
    samples,
    share_out,
)
from transformer_jax.tasks.lines import Line, Report, add_lines, answer_lines, map_windows
from transformer_jax.tasks.pair_command import PairCommand, Pairs, perplexities, score_references

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transformer_jax.config import Config
    from transformer_jax.tasks.couplets.generate import Reply


class CoupletCommand(PairCommand):
    """transformer-jax couplet."""

    subject = "couplets"
    example = "transformer-jax couplet --model runs/couplet --explain 春江明月降"
    working = "writing"
    service_reference = "transformer_jax.tasks.couplets.service:SERVICE"
    scores = (
        "perplexity per character, sacreBLEU over characters, distinct-n, the share of lines that keep each rule; with "
        "--config also separately for upper lines that are in the training data (seen) and that are not (unseen)"
    )
    options = {  # noqa: RUF012  (never changed)
        **{name: PairCommand.options[name] for name in ("--beam", "--source", "--reference")},
        "--rules": {"metavar": "RULES", "help": "rules of couplets, see transformer-jax couplet [the model's]"},
        "--plots": PLOTS_OPTION,
    }
    pictures = ("rules.png",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the search, of the rules and of the output."""
        parser.add_argument("--beam", **self.options["--beam"])
        add_lines(parser, "UPPER", "an upper line")
        parser.add_argument(
            "-n",
            "--n",
            type=int,
            default=1,
            metavar="N",
            help="lower lines to each [1]; above 1, the output is LINE<TAB>LOWER<TAB>SCORE",
        )
        parser.add_argument("--rules", metavar="RULES", help="rules that lower lines keep, see below [the model's]")
        parser.add_argument(
            "--explain",
            action="store_true",
            help="print a table below each: the lines with their tones (平 level, 仄 oblique, 通 either), and × where "
            "a rule is broken",
        )
        parser.add_argument(
            "--sample", action="store_true", help="sample instead of searching, at temperature 1 unless given"
        )
        add_sampling(parser)

    def run(self, arguments: argparse.Namespace) -> None:
        """Write lower lines to the upper lines."""
        from transformer_jax.tasks.couplets.rules import Rules

        check_options(arguments)
        if arguments.rules is not None:
            Rules.parse(arguments.rules)
        options = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed")}
        if arguments.sample and not arguments.temperature:
            options["temperature"] = 1.0
        if options["temperature"]:
            require_one_process("--sample" if arguments.sample else "--temperature")

        def answer(model: Any, uppers: list[Line], report: Report) -> list[tuple[str, list[str]]]:
            found = model.search(
                [upper.text for upper in uppers],
                rules=arguments.rules,
                beam_size=arguments.beam,
                batch_size=arguments.batch_size,
                n_best=arguments.n,
                places=[upper.number - 1 for upper in uppers],
                report=report,
                **options,
            )
            return [
                (
                    "".join(f"{line}\n" for line in _lines(arguments, upper.number, upper.text, replies)),
                    _remarks(upper.number, replies, model.known_share(upper.text)),
                )
                for upper, replies in zip(uppers, found, strict=True)
            ]

        def blank(number: int) -> str:
            return f"{number}\t\t\n" if arguments.n > 1 else "\n"

        answer_lines(self, arguments, answer, blank)

    def evaluate(self, arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
        """Scores of the best lower lines and perplexities of the references; also by whether training has the upper."""
        from transformer_jax.plots import picture_folder, save_pictures
        from transformer_jax.tasks.couplets.rules import Rules, characters, couplet_scores, rule_shares

        folder = picture_folder(arguments.plots, self.pictures)
        rules = Rules.parse(model.settings.rules if arguments.rules is None else arguments.rules)
        pairs = self.pairs(arguments, model)
        uppers = [upper for upper, _ in pairs]
        model.check_pairs(uppers, [lower for _, lower in pairs])
        share_out(model, arguments, pairs)

        def reply(uppers: list[str], report: Report) -> list[tuple[str, bool]]:
            size, beam = arguments.batch_size, arguments.beam
            found = model.search(uppers, rules=rules, beam_size=beam, batch_size=size, report=report)
            return [(best.text, bool(best.gave_up)) for best, *_ in found]

        progress(f"writing lower lines to {len(pairs):,} upper lines")
        start = time.perf_counter()
        found = map_windows(reply, uppers, self.working)
        seconds = time.perf_counter() - start
        groups = {"all": list(range(len(pairs)))}
        if arguments.config:
            seen = _seen(config_of(arguments), arguments.split, uppers)
            groups["unseen"] = [i for i, known in enumerate(seen) if not known]
            groups["seen"] = [i for i, known in enumerate(seen) if known]
        scored = score_references(model, pairs)
        report: dict[str, Any] = {}
        for name, members in groups.items():
            if not members:
                continue
            asked, written = [uppers[i] for i in members], [found[i][0] for i in members]
            references = [pairs[i][1] for i in members]
            report[name] = {
                "lines": len(members),
                **perplexities([scored[i] for i in members], list(map(characters, references))),
                **couplet_scores(written, references),
                "keeps": rule_shares(asked, written),
                "references_keep": rule_shares(asked, references),
                "gave_up": sum(found[i][1] for i in members),
                **samples(arguments, asked, written, references),
            }
        if folder is not None:
            save_pictures(folder, self.draw(uppers, [text for text, _ in found], [lower for _, lower in pairs], model))
        beam = model.settings.decoding.beam_size if arguments.beam is None else arguments.beam
        return report | {"rules": str(rules), "seconds": round(seconds, 3), "beam": beam}

    def draw(
        self, sources: Sequence[str], outputs: Sequence[str], references: Sequence[str], model: Any
    ) -> "dict[str, Figure]":
        """How often the rules are broken at each place, by the lower lines that the model writes and the references."""
        import numpy as np

        from transformer_jax.plots import rules_by_place
        from transformer_jax.tasks.couplets.rules import NAMES, broken_by_place

        found = {"written": broken_by_place(sources, outputs), "references": broken_by_place(sources, references)}
        places = max(len(couplets) for _, couplets in found.values())
        broken = {
            name: np.pad(shares, ((0, 0), (0, places - shares.shape[1])), constant_values=np.nan)
            for name, (shares, _) in found.items()
        }
        _, couplets = found["references"]
        couplets = np.pad(couplets, (0, places - len(couplets)))
        return dict(zip(self.pictures, [rules_by_place(broken, NAMES, couplets)], strict=True))

    def load_split(self, config: "Config", split: str, model: Any) -> Pairs:
        """Any split of a set of couplets."""
        from transformer_jax.tasks.couplets.sources import load_couplets

        return load_couplets(config.data, split)

    def pairs(self, arguments: argparse.Namespace, model: Any) -> Pairs:
        """The couplets that the arguments name, without spaces, none of them blank."""
        from transformer_jax.tasks.couplets.sources import without_spaces

        pairs = [(without_spaces(upper), without_spaces(lower)) for upper, lower in super().pairs(arguments, model)]
        for number, (upper, lower) in enumerate(pairs, start=1):
            if not (upper and lower):
                where = f"{arguments.reference if upper else arguments.source}, line {number:,}"
                where = f"{arguments.config} {arguments.split}, couplet {number:,}" if arguments.config else where
                raise UserError(f"{where} is blank; write a line there, or drop the couplet.")
        return pairs


COMMAND = CoupletCommand(
    "couplet",
    "write the lower line of a couplet (对联)",
    "Write the lower line to each UPPER line, or to each line of standard input (UTF-8): one line of standard output "
    "each, LOWER<TAB>SCORE, the score being the log-probability, less the penalties of weighted rules, over the length "
    "penalty. White space within a line is ignored.",
    "The rules are length (equal), punctuation (at the same places), repetition (of characters, at the same places and "
    "nowhere else), distinct (no character of the upper line) and tones (level against oblique, 平仄). RULES is a "
    "list such as length,tones=2,distinct=off: a name alone makes a rule hard, a number is the penalty in nats for "
    "each place that breaks it; none and all may begin the list. Where no line can keep all hard rules, a message on "
    "standard error names those that were given up.",
)


def _seen(config: "Config", split: str, uppers: list[str]) -> list[bool]:
    """Whether the training data has each upper line of a split."""
    from transformer_jax.tasks.couplets.sources import load_training_data, seen_uppers

    data = load_training_data(config.data, config.couplet)
    # A part that was held out for validation is part of the training set too, except for itself.
    is_held_out = not config.data.validation_split and split != "validation"
    train = [*data.train, *data.validation] if is_held_out else data.train
    return seen_uppers(uppers, train)


def _lines(arguments: argparse.Namespace, number: int, upper: str, replies: "list[Reply]") -> list[str]:
    """Lines of output for one upper line."""
    from transformer_jax.tasks.couplets.rules import explain
    from transformer_jax.tasks.couplets.sources import without_spaces

    lines = []
    for reply in replies:
        lines.append(f"{number}\t" * (arguments.n > 1) + f"{reply.text}\t{reply.score:.4f}")
        if arguments.explain:
            lines.append(explain(without_spaces(upper), reply.text, reply.gave_up) + "\n")
    return lines


def _remarks(number: int, replies: "list[Reply]", known_share: float) -> list[str]:
    """Messages about the answer to one upper line."""
    remarks = []
    given_up = sorted({name for reply in replies for name in reply.gave_up})
    if given_up:
        remarks.append(f"line {number:,}: no lower line can keep all hard rules; given up: {', '.join(given_up)}")
    if known_share < 0.5:
        known = f"only {known_share:.0%}" if known_share else "none"
        remarks.append(f"line {number:,}: the model knows {known} of its characters")
    return remarks
