"""The directive `commands`, every command with its options, from the parsers of the command line themselves."""

import argparse
import os
import re
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from transformer_jax import cli
from transformer_jax.tasks.command_line import Parser

WIDTH = "88"
"""Columns of the usage lines."""


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in a table too, but with options as code."""
    parts = re.split(r"(?<![\w-])(--[a-z][\w.-]*\w)", " ".join(text.split()))
    escaped = (re.sub(r"([\\`*_{}\[\]<>#|$~!&])", r"\\\1", part) for part in parts)
    return "".join(f"`{parts[number]}`" if number % 2 else part for number, part in enumerate(escaped))


def code(text: str) -> str:
    """Text as inline code, in a table too."""
    return f"`{text}`".replace("|", r"\|")


def invocation(action: argparse.Action) -> str:
    """An option or argument as one writes it, such as `--beam K`."""
    named = action.option_strings or [""]
    value = "" if action.nargs == 0 else argparse.HelpFormatter("")._format_args(action, action.dest.upper())
    return ", ".join(code(" ".join(filter(None, (name, value)))) for name in named)


def options_of(parser: Parser) -> str:
    """The tables of the arguments and options of a command, a group each."""
    formatter = parser._get_formatter()
    parts = []
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help not in (None, argparse.SUPPRESS)]
        rows = [f"| {invocation(each)} | {plain(formatter._expand_help(each))} |" for each in shown]
        if rows:
            intro = [f"**{plain(group.title or '').capitalize()}**", plain(group.description or "")]
            parts.append("\n\n".join([*filter(None, intro), "\n".join(["| | |", "| --- | --- |", *rows])]))
    return "\n\n".join(parts)


def page_of(name: str, parser: Parser) -> str:
    """The section of a command, in Markdown."""
    usage = parser.format_usage().removeprefix("usage: ")
    parts = [
        f"## {name}",
        plain(parser.description or ""),
        f"```text\n{usage}```",
        options_of(parser),
        plain(parser.epilog or ""),
        f"Example:\n\n```sh\n{parser.example}\n```" if parser.example else "",
    ]
    return "\n\n".join(filter(None, parts))


def reference() -> str:
    """The sections of all commands, in Markdown."""
    with mock.patch.dict(os.environ, {"COLUMNS": WIDTH, "NO_COLOR": "1"}):
        return "\n\n".join(page_of(name, parser) for name, parser in cli._parser().commands.items())


class Commands(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        self.env.note_reread()  # the parsers are in many modules
        return self.parse_text_to_nodes(reference(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
