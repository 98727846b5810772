"""What is fuzzed: readers of files and arguments that people and other programs write, each as a function of bytes.

Hypothesis (`test_fuzz.py`) and atheris (`fuzz_by_coverage.py`) drive them.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import safetensors.numpy

from tests.interop.marian_folders import ENGLISH, GERMAN, make_folder, sentencepiece_model
from tests.tasks.toys import write_bundle
from transformer_jax import cli
from transformer_jax.config import config_from_dict, default_config, from_config_dict, upgraded
from transformer_jax.data.readers import read_lines
from transformer_jax.data.sentencepiece_tokenizers import MarianTokenizer
from transformer_jax.data.tokenizers import tokenizer_from_files, train_tokenizer
from transformer_jax.interop import reading
from transformer_jax.interop.marian_config import model_config_of
from transformer_jax.nn import abstract_params
from transformer_jax.system import UserError
from transformer_jax.tasks.classification.labelled import Columns, read_labelled
from transformer_jax.tasks.model_folder import CONFIG_FILE, WEIGHTS_FILE, load

COLUMNS = (Columns(), Columns(("2", "3"), "1"), Columns(("text", "title"), "label"))
FORMS = (".csv", ".tsv", ".jsonl", ".csv.gz")
TOKENIZER_FILES = ("tokenizer.model", "words.txt", "characters.txt", MarianTokenizer.VOCABULARY_FILE)
OPTIONS = (
    *("translate", "classify", "couplet", "evaluate", "import", "export", "--help", "--model", "--batch-size", "--"),
    *("--beam", "--alpha", "--n-best", "--scores", "--temperature", "--top-k", "--top-p", "--seed", "--min-length"),
    *("--max-length", "--prefix", "--no-repeat-ngram", "--conventions", "--stream", "--alignment", "--output"),
    *("--from", "--to", "--num-heads", "--norm-first", "--quantization", "--distributed", "--num_processes", "marian"),
    *("--source", "--reference", "--config", "--split", "--samples", "--rules", "--text-columns", "--num_processes=1"),
)
NUMBERS = ("0", "-1", "1", "2.5", "nan", "-inf", "1e309", "1e-320", str(2**63), "9" * 400, "１２", "0x10", "1_0", " 1 ")


@dataclass(frozen=True)
class Target:
    """A function under test: it returns, or raises `UserError`."""

    run: Callable[[bytes], object]
    seeds: list[bytes]
    """Valid inputs, for mutation."""
    words: list[bytes]
    """What the grammar of the input is made of."""


def overrides(_: Path) -> Target:
    """The arguments of transformer-jax train, one a line."""
    fields = list(_fields(default_config().to_dict()))
    seeds = [f"--config.{path}={value}" for path, value in fields]
    words = [path.rpartition(".")[2] for path, _ in fields]
    literals = ["--config.", "--config.data.text_columns=", "(", "'", "\\", "1,", "[", "{1:", "None", "True", "lambda"]

    def run(content: bytes) -> None:
        # Neither NUL nor lone surrogates other than these escapes occur in arguments.
        arguments = content.replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")
        try:
            from_config_dict(cli._override(default_config(), arguments))
        except UserError as error:
            raise UserError(" ".join(str(error).split())) from error  # as cli.main prints it

    return Target(run, _bytes(seeds), _bytes([*words, *literals, *NUMBERS]))


def stored_config(_: Path) -> Target:
    """`config.json` of a run."""
    fields = [path.rpartition(".")[2] for path, _ in _fields(default_config().to_dict())]

    def run(content: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError):  # JSON is read elsewhere
            config_from_dict(upgraded(json.loads(content)), "config").to_dict()

    old = {"task": "couplet", "decoding": {"rules": "all", "max_length": 9}, "data": {"source": "a"}}
    seeds = [json.dumps(default_config().to_dict()), json.dumps(old)]
    return Target(run, _bytes(seeds), _bytes([f'"{name}":' for name in fields] + [*"{}[],", "null", *NUMBERS]))


def text(folder: Path) -> Target:
    """A text file."""
    path = folder / "lines.txt"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        lines = read_lines(path)
        assert not any("\n" in line for line in lines)

    plain = "Zwei Hunde\r\n你好，世界！\n\n\u2028 e\u0301\n".encode()
    seeds = [plain, b"\xef\xbb\xbf" + plain, gzip.compress(plain, mtime=0), gzip.compress(plain, mtime=0) * 2]
    return Target(run, seeds, [b"\x1f\x8b\x08", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff\xfe", b"\r", b"\n", b"\0"])


def labelled_texts(folder: Path) -> Target:
    """A file of labelled texts; the first byte chooses its form and columns."""

    def run(content: bytes) -> None:
        choice, content = content[:1] or b"\0", content[1:]
        columns, form = divmod(choice[0], len(FORMS))
        path = folder / f"labelled{FORMS[form]}"
        path.write_bytes(content)
        for record in read_labelled(path, columns=COLUMNS[columns % len(COLUMNS)]):
            assert record.text.strip()
            assert record.label.strip()

    table = 'label,text,title\nbee,"a ""b"", c\nd",x\ncat,"e",y\n'
    rows = {"label": "bee", "text": 'a "b"\n', "title": "x"}, {"label": 3, "text": "\U0001f41d", "title": ""}
    forms = [table, table.replace(",", "\t").replace('"', ""), "\n".join(map(json.dumps, rows)) + "\n"]
    compressed = gzip.compress(table.encode(), mtime=0)
    seeds = [
        bytes([len(FORMS) * columns + form]) + content
        for columns in range(len(COLUMNS))
        for form, content in enumerate([*_bytes(forms), compressed])
    ]
    words = ['"', '""', ",", "\t", "\r", "\n", "\r\n", '{"text": "', '"label": ', "\\ud800", "[" * 99, "\\u0000"]
    return Target(run, seeds, _bytes([*words, *NUMBERS]))


def tokenizer(_: Path) -> Target:
    """A tokenizer's file; the first byte chooses which."""
    model, texts = sentencepiece_model((*GERMAN, *ENGLISH), 120), [*GERMAN, *ENGLISH]

    def run(content: bytes) -> None:
        name = TOKENIZER_FILES[content[0] % len(TOKENIZER_FILES) if content else 0]
        read = tokenizer_from_files({MarianTokenizer.MODEL_FILE: model, name: content[1:]})
        ids = read.encode("Wo ist der Hund?\u200d x²")
        assert all(0 <= token_id < read.vocab_size for token_id in ids)
        read.decode(ids)

    files = [
        train_tokenizer("bpe", texts, 120).files(),
        train_tokenizer("word", texts, 50).files(),
        train_tokenizer("char", texts, 50).files(),
        {"": b'{"padding_place": 3, "start": 3, "end": 0, "unknown": 1, "pieces": [null, "a", "b", "c"]}'},
    ]
    seeds = [bytes([number]) + content for number, file in enumerate(files) for content in file.values()]
    words = ["<pad>\n<s>\n</s>\n<unk>\n", '"pieces": ', '"start": ', *"{}[],", "null", *NUMBERS]
    return Target(run, seeds, [*_bytes(words), b"\n\x0c\n\x05", b"\xff" * 8])


def model_folder(folder: Path) -> Target:
    """A file of a model folder; the first byte chooses which. The hashes are right, as an attacker's would be."""
    path = write_bundle(folder / "model")
    original = {file.name: file.read_bytes() for file in path.iterdir()}
    config = json.loads(original[CONFIG_FILE])
    names = [CONFIG_FILE, *config["sha256"]]

    def run(content: bytes) -> None:
        name = names[content[0] % len(names) if content else 0]
        files = original | {name: content[1:]}
        if name != CONFIG_FILE:
            sha256 = config["sha256"] | {name: hashlib.sha256(content[1:]).hexdigest()}
            files[CONFIG_FILE] = json.dumps(config | {"sha256": sha256}).encode()
        for changed in (name, CONFIG_FILE):
            (path / changed).write_bytes(files[changed])
        try:
            load(path)
        finally:
            for changed in (name, CONFIG_FILE):
                (path / changed).write_bytes(original[changed])

    seeds = [bytes([number]) + original[name] for number, name in enumerate(names)]
    fields = [f'"{name}": ' for group in ("model", "settings") for name in config[group]]
    words = [*fields, *config["sha256"], *"{}[],", "null", '"dtype":"F32"', '"data_offsets":[', '"shape":[', *NUMBERS]
    return Target(run, seeds, [*_bytes(words), b"\xff" * 8])


def foreign_folder(folder: Path) -> Target:
    """A file of a model of another system; the first byte chooses which."""
    path = make_folder(folder / "marian")
    tiny = safetensors.numpy.save({"a": np.ones((2, 1), np.float32), "b": np.ones(1, np.float16)})
    names = (CONFIG_FILE, WEIGHTS_FILE, "vocab.json")
    original = {name: (path / name).read_bytes() for name in names} | {WEIGHTS_FILE: tiny}

    def run(content: bytes) -> None:
        name = names[content[0] % len(names) if content else 0]
        (path / name).write_bytes(content[1:])
        try:
            if name == CONFIG_FILE:
                model_config_of(path / name, reading.read_json(path, name))
            elif name == WEIGHTS_FILE:
                reading.read_weights(path)
            else:
                reading.read_json(path, name)
        finally:
            (path / name).write_bytes(original[name])

    seeds = [bytes([number]) + original[name] for number, name in enumerate(names)]
    fields = [f'"{name}": ' for name in json.loads(original[CONFIG_FILE])]
    words = [*fields, *"{}[],", "null", '"dtype":"F32"', '"data_offsets":[', '"shape":[', *NUMBERS]
    return Target(run, seeds, [*_bytes(words), b"\xff" * 8])


def command_line(_: Path) -> Target:
    """The arguments of transformer-jax, one a line, up to the model, which does not exist."""

    def run(content: bytes) -> None:
        arguments = content.replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")
        # Neither train nor wait for other processes.
        if {"train", "--distributed", "--coordinator", "--num_processes", "--process_id"} & {
            argument.partition("=")[0] for argument in arguments
        }:
            parse: Callable[[list[str]], object] = cli._parser().parse_known_args
        else:
            parse = cli.main
        with (
            mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ein Hund\n"))),
            contextlib.redirect_stderr(io.StringIO()) as errors,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            try:
                status = parse(arguments)
            except SystemExit as error:  # of argparse
                status = error.code
        if isinstance(status, int):
            assert status in (0, 2)
            assert status == 0 or "error: " in errors.getvalue()

    commands = [
        ["translate", "--model", "nowhere", "--beam", "4", "--alpha=0.6", "--n-best=2", "ein Hund"],
        ["translate", "--model=nowhere", "--stream", "--temperature", "0.5", "--top-k=3", "--top-p=0.5", "--", "-1"],
        ["classify", "--model", "nowhere", "a", "b"],
        ["train", "--config", "nowhere:de-en", "--workdir=runs/x", "--config.optim.lr=1e-3"],
        ["couplet", "--model", "nowhere", "春风"],
        ["evaluate", "--model", "nowhere", "--source", "a", "--reference", "b", "--samples=2"],
        ["import", "--from", "marian", "nowhere", "out"],
        ["import", "--from", "torch", "--num-heads=2", "--norm-first", "nowhere", "out"],
        ["export", "--model", "nowhere", "--to", "stablehlo", "out"],
    ]
    return Target(run, _bytes(["\n".join(command) for command in commands]), _bytes([*OPTIONS, "\n", "=", *NUMBERS]))


_abstract_params = functools.lru_cache(100)(abstract_params)

_QUICK: dict[str, Callable] = {
    "importlib.metadata.entry_points": functools.cache(importlib.metadata.entry_points),
    "ml_collections.ConfigDict.__str__": lambda self: "",
    "transformer_jax.cli._parser": functools.cache(cli._parser),
    "transformer_jax.tasks.model_folder.abstract_params": _abstract_params,
    "transformer_jax.tasks.seq2seq_model.abstract_params": _abstract_params,
}
"""What does not depend on the bytes, or only on what was checked, and would take most of the time."""


TARGETS: dict[str, Callable[[Path], Target]] = {
    "config overrides": overrides,
    "config of a run": stored_config,
    "text": text,
    "labelled texts": labelled_texts,
    "tokenizer": tokenizer,
    "model folder": model_folder,
    "foreign folder": foreign_folder,
    "command line": command_line,
}
"""Made in a folder, where they write what is read."""


def _fields(values: dict, above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _bytes(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


@contextlib.contextmanager
def prepared(name: str) -> Iterator[Target]:
    """The target of this name; what does not depend on its input is computed once."""
    memory = Path("/dev/shm")  # other file systems write through whatever is replaced
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None))
        target = TARGETS[name](Path(folder))
        for function, quick in _QUICK.items():
            stack.enter_context(mock.patch(function, quick))
        yield target


def one_sentence(target: Target, content: bytes) -> None:
    """Run the target.

    Raises:
        AssertionError: if an error is not of one line.
        Exception: anything but a `UserError`.
    """
    try:
        target.run(content)
    except UserError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"not one line: {str(error)!r}") from error
