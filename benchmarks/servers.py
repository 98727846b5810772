"""Servers that `serving` loads, all behind the app of `transformer-jax serve`: `python -m benchmarks.servers NAME ...`.

Prints one JSON object once it listens: its port, or why it is unavailable.
"""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import OURS
from benchmarks.settings import Unavailable
from benchmarks.translators import SOURCE_TOKENIZER, TARGET_TOKENIZER, _processor


class _Output(NamedTuple):
    text: str
    score: float


class CTranslate2Model:
    """CTranslate2 as a model that the service of translators can ask."""

    def __init__(self, model: Path, exports: Path, threads: int) -> None:
        """Load the folder written by `export_all`.

        Raises:
            Unavailable: if CTranslate2 is not installed.
        """
        try:
            import ctranslate2
        except ImportError as error:
            raise Unavailable('package ctranslate2 is not installed; pip install -e ".[bench]"') from error
        import transformer_jax

        self._decoding = transformer_jax.load(model).settings.decoding
        folder = exports / "float32"
        self._source, self._target = _processor(folder, SOURCE_TOKENIZER), _processor(folder, TARGET_TOKENIZER)
        self._engine = ctranslate2.Translator(
            str(folder), device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
        )

    def check(self, texts: Sequence[str], prefix: str | None = None) -> None:
        """Accept all texts."""

    def search(self, texts: Sequence[str], *, beam_size: int = 4, **_: Any) -> list[list[_Output]]:
        """The best translation of each text."""
        sources = self._source.encode(list(texts), out_type=str)
        results = self._engine.translate_batch(
            sources,
            beam_size=beam_size,
            length_penalty=self._decoding.alpha,
            disable_unk=True,
            max_input_length=0,
            max_decoding_length=max(map(len, sources)) + self._decoding.max_extra_tokens,
            return_scores=True,
        )
        found = self._target.decode([result.hypotheses[0] for result in results])
        return [[_Output(text, result.scores[0])] for text, result in zip(found, results, strict=True)]


def main(name: str, model: str, exports: str, threads: str) -> None:
    """Serve until the parent, whose end of the pipe is standard output, has gone."""
    parent, said = os.getppid(), sys.stdout
    sys.stdout = sys.stderr
    from transformer_jax.system import runtime

    runtime.prepare()
    import uvicorn

    from transformer_jax.experiments.trial import end_with
    from transformer_jax.serving import Limits, load_engines
    from transformer_jax.serving.api import create_app
    from transformer_jax.serving.engine import Engine

    is_alone = name not in (OURS, "ctranslate2")  # a batch is full with its first request
    limits = Limits(max_waiting=1024, gather_ms=0 if is_alone else Limits.gather_ms)
    try:
        [engine] = load_engines([model])
        if name == "ctranslate2":
            engine = Engine(CTranslate2Model(Path(model), Path(exports), int(threads)), engine.service)
    except Unavailable as reason:
        print(json.dumps({"unavailable": str(reason)}), file=said, flush=True)
        return
    if name != "ctranslate2":
        engine.warm_up()
    app = create_app([engine], limits, **({"most_texts": 1} if is_alone else {}))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http="h11", loop="asyncio", ws="none", log_level="warning"))

    end_with(parent, lambda: os._exit(0))
    print(json.dumps({"port": listener.getsockname()[1]}), file=said, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
