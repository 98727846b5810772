"""transformer-jax couplet: upper lines to lower lines."""

import argparse
from typing import TYPE_CHECKING, Any

from transformer_jax.system.errors import UserError
from transformer_jax.tasks.command_line import (
    add_model,
    add_sampling,
    add_search,
    load_as,
    progress,
    require_one_process,
    share_out,
    texts_to_read,
    write,
)

if TYPE_CHECKING:
    from transformer_jax.tasks.couplets.generate import Reply


def add_command(commands: Any) -> None:
    """Add this command to those of the parser."""
    couplet = commands.add_parser(
        "couplet",
        help="write the lower line of a couplet (对联)",
        description="Write the lower line to each UPPER line, or to each line of standard input (UTF-8): one line of "
        "standard output each, LOWER<TAB>SCORE, the score being the log-probability, less the penalties of weighted "
        "rules, over the length penalty. White space within a line does not count.",
        epilog="The rules are length (equal), punctuation (at the same places), repetition (of characters, at the same "
        "places and nowhere else), distinct (no character of the upper line) and tones (level against oblique, 平仄). "
        "RULES is a list such as length,tones=2,distinct=off: a name alone makes a rule hard, a number is the penalty "
        "in nats for each place that breaks it; none and all may begin the list. Where no line can keep all hard "
        "rules, a message on standard error says which were given up.",
        allow_abbrev=False,
    )
    couplet.set_defaults(command=_couplet)
    add_model(couplet)
    add_search(couplet)
    couplet.add_argument("uppers", nargs="*", metavar="UPPER", help="an upper line")
    couplet.add_argument(
        "-n",
        "--n",
        type=int,
        default=1,
        metavar="N",
        help="lower lines to each [1]; above 1, the output is LINE<TAB>LOWER<TAB>SCORE",
    )
    couplet.add_argument("--rules", metavar="RULES", help="what lower lines keep to, see below [the model's]")
    couplet.add_argument(
        "--explain",
        action="store_true",
        help="print a table below each: the lines with their tones (平 level, 仄 oblique, 通 either), and × where a "
        "rule is broken",
    )
    couplet.add_argument("--sample", action="store_true", help="draw instead of search, at temperature 1 unless given")
    add_sampling(couplet)
    couplet.add_argument("--output", metavar="FILE", help="write to FILE instead, whole or not at all")


def _couplet(arguments: argparse.Namespace) -> None:
    from transformer_jax.system import distributed
    from transformer_jax.tasks.couplets.writer import CoupletWriter

    if arguments.n < 1:
        raise UserError(f"--n is {arguments.n}, but must be at least 1.")
    options = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed")}
    if arguments.sample and not arguments.temperature:
        options["temperature"] = 1.0
    if options["temperature"]:
        require_one_process("--sample" if arguments.sample else "--temperature")
    uppers = texts_to_read(arguments.uppers)
    model = load_as(CoupletWriter, arguments.model)
    share_out(model, arguments, uppers, lambda: model.check(uppers))

    def answer(numbered: list[tuple[int, str]]) -> list[tuple[list[str], list[str]]]:
        found = model.search(
            [upper for _, upper in numbered],
            rules=arguments.rules,
            beam_size=arguments.beam,
            batch_size=arguments.batch_size,
            n_best=arguments.n,
            **options,
        )
        return [
            (_lines(arguments, number, upper, replies), _remarks(number, replies, model.known_share(upper)))
            for (number, upper), replies in zip(numbered, found, strict=True)
        ]

    answers = distributed.parallel_map(answer, list(enumerate(uppers, start=1)))
    for _, remarks in answers:
        for remark in remarks:
            progress(remark)
    write("".join(line + "\n" for lines, _ in answers for line in lines), arguments.output)


def _lines(arguments: argparse.Namespace, number: int, upper: str, replies: "list[Reply]") -> list[str]:
    """What is printed for one upper line."""
    from transformer_jax.tasks.couplets.judge import explain
    from transformer_jax.tasks.couplets.sources import without_spaces

    lines = []
    for reply in replies:
        lines.append(f"{number}\t" * (arguments.n > 1) + f"{reply.text}\t{reply.score:.4f}")
        if arguments.explain:
            lines.append(explain(without_spaces(upper), reply.text, reply.gave_up) + "\n")
    return lines


def _remarks(number: int, replies: "list[Reply]", known_share: float) -> list[str]:
    """What a person should know of the answer to one upper line."""
    remarks = []
    given_up = sorted({name for reply in replies for name in reply.gave_up})
    if given_up:
        remarks.append(f"line {number:,}: no lower line can keep all hard rules; given up: {', '.join(given_up)}")
    if known_share < 0.5:
        known = f"only {known_share:.0%}" if known_share else "none"
        remarks.append(f"line {number:,}: the model knows {known} of its characters")
    return remarks
