"""Python code for the READMEs of exported folders: tokenization with the files there, without this package."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from transformer_jax.data.sentencepiece_tokenizers import MarianTokenizer, SentencePieceTokenizer
from transformer_jax.data.tokenizers import (
    CharTokenizer,
    CodePointWordTokenizer,
    Tokenizer,
    TokenizerPair,
    WordTokenizer,
)
from transformer_jax.system import UserError
from transformer_jax.tasks.seq2seq_model import Seq2SeqModel

FOLDER = "path/of/this/folder"
"""Placeholder for the exported folder in a README."""
ONE_LIMIT = (
    "All texts of one call share the output length limit of the longest of them; in transformer-jax each text has\n"
    "its own."
)
"""Why outputs cut off by the limit may differ."""


@runtime_checkable
class TextModel(Protocol):
    """A trained model whose input is text."""

    @property
    def tokenizer(self) -> TokenizerPair | Tokenizer:
        """Tokenizers of input and output; a single one where the output is not text."""

    @property
    def normalization(self) -> str:
        """What precedes tokenization, as a Python expression of `text`; see `imports_of`."""


class Snippet(NamedTuple):
    """Lines of Python in which `folder` is the path of the exported folder."""

    imports: list[str]
    setup: list[str]
    encode: str
    """Expression of `text`: its tokens, without the end of sentence."""
    decode: str
    """Expression of `output`, the tokens of an output without its end: the text."""


def tokenizer_snippet(model: TextModel, *, pieces: bool) -> Snippet:
    """Code that turns texts into inputs of `model`, and its outputs into texts.

    Args:
        model: its tokenizer's files are in the exported folder, under the names they have in its model folder.
        pieces: whether tokens are strings, which the other system looks up in its own vocabulary, instead of ids.

    Raises:
        UserError: for a tokenizer that is not one of this package.
    """
    tokenizer, text = model.tokenizer, model.normalization
    if not isinstance(tokenizer, TokenizerPair):
        snippet = _side(tokenizer, "tokenizer", "", text, pieces)
    elif tokenizer.source is tokenizer.target:
        snippet = _side(tokenizer.source, "tokenizer", "", text, pieces)
    else:
        sides = (_side(getattr(tokenizer, name), name, f"{name}.", text, pieces) for name in ("source", "target"))
        source, target = sides
        snippet = Snippet(source.imports, source.setup + target.setup, source.encode, target.decode)
    return snippet._replace(imports=list(dict.fromkeys([*snippet.imports, *imports_of(text)])))


def imports_of(normalization: str) -> list[str]:
    """The lines that import what a normalization uses."""
    return [f"import {name}" for name in ("regex", "unicodedata") if f"{name}." in normalization]


def packages_of(imports: Sequence[str]) -> str:
    """The packages that these lines need, for `pip install`: each after a space."""
    return "".join(f" {name}" for name in ("sentencepiece", "regex") if f"import {name}" in imports)


def longest_output(model: Seq2SeqModel[Any]) -> str:
    """Expression of `sources`, the tokens of a batch: the largest number of output tokens, all without their ends."""
    decoding = model.settings.decoding
    longest = f"max(map(len, sources), default=0) + {decoding.max_extra_tokens}"
    # Both of our limits count the end of sentence.
    limits = [limit - 1 for limit in (decoding.max_length, model.model_config.position_limit or 0) if limit > 0]
    return f"min({longest}, {min(limits)})" if limits else longest


def _side(tokenizer: Tokenizer, name: str, prefix: str, text: str, pieces: bool) -> Snippet:
    """The code of one tokenizer, called `name`, whose file names start with `prefix`."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        ids = f"{name}.encode({text})"
        # By way of ids: encoding to strings would give the characters of unknown text, whatever pieces they look like.
        return Snippet(
            ["import sentencepiece"],
            [_processor(name, prefix + tokenizer.FILE_NAME)],
            f"{name}.id_to_piece({ids})" if pieces else ids,
            f"{name}.decode(output)",
        )
    if isinstance(tokenizer, MarianTokenizer):
        # A language code is one token, which the sentencepiece model does not know.
        code = '"(?s)^>>.*?<<"'
        cut = f're.findall({code}, {text}) + {name}.encode(re.sub({code}, "", {text}), out_type=str)'
        written = "output" if pieces else f"[{name}_pieces[token] for token in output]"
        vocabulary = f'json.loads(Path(folder, "{prefix}{tokenizer.VOCABULARY_FILE}").read_text("utf-8"))["pieces"]'
        return Snippet(
            ["import re", "import sentencepiece"]
            if pieces
            else ["import json", "import re", "from pathlib import Path", "import sentencepiece"],
            [_processor(name, prefix + tokenizer.MODEL_FILE), *([] if pieces else _vocabulary(name, vocabulary))],
            cut if pieces else _looked_up(name, tokenizer, cut),
            f'{name}.decode({written}).replace("\\u2581", " ").strip()',
        )
    if not isinstance(tokenizer, CharTokenizer | WordTokenizer):
        raise UserError(
            f"Models with a {type(tokenizer).__name__} cannot be exported; use a tokenizer of this package."
        )
    is_char = isinstance(tokenizer, CharTokenizer)
    library = "re" if isinstance(tokenizer, CharTokenizer | CodePointWordTokenizer) else "regex"
    if isinstance(tokenizer, CharTokenizer):
        cut = f'list(re.sub({tokenizer.other_space!r}, " ", {text}))'
    else:
        cut = f"{library}.findall({tokenizer.PATTERN!r}, {text})"
    vocabulary = f'Path(folder, "{prefix}{tokenizer.FILE_NAME}").read_text("utf-8").split("\\n")'
    written = "output" if pieces else f"({name}_pieces[token] for token in output)"
    return Snippet(
        [f"import {library}"] if pieces else [f"import {library}", "from pathlib import Path"],
        [] if pieces else _vocabulary(name, vocabulary),
        cut if pieces else _looked_up(name, tokenizer, cut),
        f'"{"" if is_char else " "}".join({written})',
    )


def _processor(name: str, file: str) -> str:
    return f'{name} = sentencepiece.SentencePieceProcessor(model_file=f"{{folder}}/{file}")'


def _vocabulary(name: str, pieces: str) -> list[str]:
    return [
        f"{name}_pieces = {pieces}",
        f"{name}_ids = {{piece: token for token, piece in enumerate({name}_pieces)}}",
    ]


def _looked_up(name: str, tokenizer: Tokenizer, cut: str) -> str:
    return f"[{name}_ids.get(piece, {tokenizer.special_tokens.unk}) for piece in {cut}]"
