"""Python for the READMEs of exported folders: how the tokenizer's files there are used without this package."""

from typing import NamedTuple

from transformer_jax.data.marian_tokenizer import MarianTokenizer
from transformer_jax.data.tokenizers import CharTokenizer, SentencePieceTokenizer, Tokenizer, WordTokenizer
from transformer_jax.system.errors import UserError
from transformer_jax.tasks.classification.text_classifier import TextClassifier
from transformer_jax.tasks.couplets.writer import CoupletWriter
from transformer_jax.tasks.translation.translator import Translator

FOLDER = "path/of/this/folder"
"""What stands for the exported folder in a README."""
WITHOUT_RULES = "The rules of couplets are not in this folder; its lines may break them."
"""Of a writer of couplets, elsewhere."""
ONE_LIMIT = (
    "Texts that are translated together share a limit on the length of outputs, by the longest of them; in\n"
    "transformer-jax each text has its own."
)
"""Why outputs that do not end may differ."""


class Snippet(NamedTuple):
    """Lines of Python that know `folder`, the folder's path."""

    imports: list[str]
    setup: list[str]
    encode: str
    """An expression of `text`, without the end of sentence."""
    decode: str
    """An expression of `output`, the tokens of an output without its end."""


def tokenizer_snippet(model: Translator | CoupletWriter | TextClassifier, *, pieces: bool) -> Snippet:
    """How a text becomes what `model` reads, and what it writes becomes a text.

    Args:
        model: the tokenizer's files, as they are named in the model's own folder, lie in the exported one.
        pieces: whether tokens are strings, which the reader looks up in a vocabulary of its own, rather than ids.

    Raises:
        UserError: for a tokenizer that is none of this package.
    """
    if isinstance(model, TextClassifier):
        text = "text.lower()" if model.settings.lowercase else "text"
        side = _side(model.tokenizer, "tokenizer", "", text, pieces)
        return side._replace(decode="")
    text = '"".join(text.split())' if isinstance(model, CoupletWriter) else "text"
    if isinstance(model, Translator) and model.settings.lowercase:
        text = "text.lower()"
    pair = model.tokenizer
    if pair.joint:
        return _side(pair.source, "tokenizer", "", text, pieces)
    source, target = (_side(getattr(pair, name), name, f"{name}.", text, pieces) for name in ("source", "target"))
    return Snippet(source.imports, source.setup + target.setup, source.encode, target.decode)


def longest_output(model: Translator | CoupletWriter) -> str:
    """An expression of how many tokens outputs may have; `sources` are tokens, all without the end of sentence."""
    decoding = model.settings.decoding
    longest = f"max(map(len, sources), default=0) + {decoding.max_extra_tokens}"
    # Both of our limits count the end of sentence.
    limits = [limit - 1 for limit in (decoding.max_length, model.model_config.position_limit or 0) if limit > 1]
    return f"min({longest}, {min(limits)})" if limits else longest


def _side(tokenizer: Tokenizer, name: str, prefix: str, text: str, pieces: bool) -> Snippet:
    """What one tokenizer, to be called `name`, needs; the names of its files begin with `prefix`."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        ids = f"{name}.encode({text})"
        # Not its own pieces: those of unknown characters are these characters, whatever they look like.
        return Snippet(
            ["import sentencepiece"],
            [_processor(name, prefix + tokenizer.FILE_NAME)],
            f"{name}.id_to_piece({ids})" if pieces else ids,
            f"{name}.decode(output)",
        )
    if isinstance(tokenizer, MarianTokenizer):
        # A language code is one piece, which the sentencepiece model does not know.
        code = '"(?s)^>>.*?<<"'
        cut = f're.findall({code}, {text}) + {name}.encode(re.sub({code}, "", {text}), out_type=str)'
        written = "output" if pieces else f"[{name}_pieces[token] for token in output]"
        vocabulary = f'json.loads(Path(folder, "{prefix}{tokenizer.VOCABULARY_FILE}").read_text("utf-8"))["pieces"]'
        return Snippet(
            ["import re", "import sentencepiece"]
            if pieces
            else ["import json", "import re", "from pathlib import Path", "import sentencepiece"],
            [_processor(name, prefix + tokenizer.MODEL_FILE), *([] if pieces else _listed(name, vocabulary))],
            cut if pieces else _looked_up(name, tokenizer, cut),
            f'{name}.decode({written}).replace("\\u2581", " ").strip()',
        )
    if not isinstance(tokenizer, CharTokenizer | WordTokenizer):
        raise UserError(
            f"Models with a {type(tokenizer).__name__} cannot be exported; use a tokenizer of this package."
        )
    is_char = isinstance(tokenizer, CharTokenizer)
    cut = f'list(re.sub(r"\\s", " ", {text}))' if is_char else f're.findall(r"\\w+|[^\\w\\s]", {text})'
    vocabulary = f'Path(folder, "{prefix}{tokenizer.FILE_NAME}").read_text("utf-8").split("\\n")'
    written = "output" if pieces else f"({name}_pieces[token] for token in output)"
    return Snippet(
        ["import re"] if pieces else ["import re", "from pathlib import Path"],
        [] if pieces else _listed(name, vocabulary),
        cut if pieces else _looked_up(name, tokenizer, cut),
        f'"{"" if is_char else " "}".join({written})',
    )


def _processor(name: str, file: str) -> str:
    return f'{name} = sentencepiece.SentencePieceProcessor(model_file=f"{{folder}}/{file}")'


def _listed(name: str, pieces: str) -> list[str]:
    return [
        f"{name}_pieces = {pieces}",
        f"{name}_ids = {{piece: token for token, piece in enumerate({name}_pieces)}}",
    ]


def _looked_up(name: str, tokenizer: Tokenizer, cut: str) -> str:
    return f"[{name}_ids.get(piece, {tokenizer.special_tokens.unk}) for piece in {cut}]"
