"""Atheris, in a process of its own, which it takes over.

    python -m tests.reliability.fuzz_by_coverage TARGET FOLDER [OPTIONS OF LIBFUZZER]

Coverage of the package, and what is compared in it, guide the mutation of the target's seeds.
"""

import os
import sys
import traceback
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["transformer_jax", "train"]):
    from tests.reliability.fuzz_targets import one_sentence, prepared


def main() -> None:
    name, folder, *options = sys.argv[1:]
    warnings.simplefilter("error")
    with prepared(name) as target:
        corpus, dictionary = Path(folder, "corpus"), Path(folder, "dictionary")
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(seed)
        words = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
        dictionary.write_text("".join(f'"{word}"\n' for word in words))
        options = [*options, f"-dict={dictionary}", f"-artifact_prefix={folder}/", str(corpus)]

        def run(content: bytes) -> None:
            try:
                one_sentence(target, content)
            except BaseException:
                print(f"input: {content!r}", file=sys.stderr)
                traceback.print_exc()
                os._exit(1)  # libFuzzer, which would stop the threads of JAX first, may be killed by its own timer

        atheris.Setup([sys.argv[0], *options], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
