"""Compares the outputs of exported models with ours.

    python benchmarks/export_parity.py --model runs/multi30k/model --source test.de

Exports the model for CTranslate2 (float32, and int8 for comparison) and for transformers (MarianMT if it is post-norm,
Pegasus if pre-norm), translates the lines of the file there, with the code of the exported README, and here, and prints
a JSON object: the share of equal texts, and each difference with our model's scores of both texts. Score differences
below `--tie` are ties, which rounding decides. Needs ctranslate2, torch and transformers.
"""

import argparse
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformer_jax
from transformer_jax.interop.ctranslate2_export import export_ctranslate2
from transformer_jax.interop.marian import export_marian
from transformer_jax.tasks.translation.translator import Translator


def read_lines(path: str) -> list[str]:
    """Lines of a UTF-8 file, plain or gzipped."""
    opener: Callable[..., Any] = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as stream:
        return [line.rstrip("\n") for line in stream]


def from_readme(folder: Path) -> Callable[[list[str]], list[str]]:
    """The function `translate` in the README of an exported folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("path/of/this/folder", str(folder)), names)
    return names["translate"]


def compare(model: Translator, texts: list[str], theirs: list[str], conventions: str, tie: float) -> dict[str, Any]:
    """The share of equal texts, and the different ones with our scores of both."""
    ours = model.search(texts, conventions=conventions)
    usual = model.translate(texts)
    rows = [
        (number, text, our[0], their)
        for number, (text, our, their) in enumerate(zip(texts, ours, theirs, strict=True), 1)
        if our[0].text != their
    ]
    pairs = [text for _, text, *_ in rows for _ in range(2)]
    scores = model.score(pairs, [output for *_, our, their in rows for output in (our.text, their)]) if rows else []
    alpha = model.settings.decoding.alpha
    differences = []
    for (number, text, our, their), first, second in zip(rows, scores[::2], scores[1::2], strict=True):
        gap = first.log_prob / len(first.tokens) ** alpha - second.log_prob / len(second.tokens) ** alpha
        differences.append(
            {
                "line": number,
                "source": text,
                "ours": our.text,
                "theirs": their,
                "our_log_prob": round(first.log_prob, 5),
                "their_log_prob": round(second.log_prob, 5),
                "score_gap": round(gap, 6),
                "is_tie": abs(gap) < tie,
            }
        )
    return {
        "conventions": conventions,
        "equal": 1 - len(differences) / len(texts),
        "equal_to_our_defaults": sum(map(str.__eq__, usual, theirs)) / len(texts),
        "differences": differences,
    }


def main() -> None:
    """Export, translate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the folder of a translator")
    parser.add_argument("--source", required=True, help="a file of texts, one a line; plain or gzip")
    parser.add_argument("--lines", type=int, help="only the first N")
    parser.add_argument("--tie", type=float, default=1e-4, help="scores closer than this are equal [0.0001]")
    parser.add_argument("--only", choices=("ctranslate2", "transformers"), help="only this system")
    arguments = parser.parse_args()
    model = transformer_jax.load(arguments.model)
    texts = read_lines(arguments.source)[: arguments.lines]
    beam_size = model.settings.decoding.beam_size
    report: dict[str, Any] = {"model": arguments.model, "lines": len(texts), "beam_size": beam_size}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.only != "transformers":
            for quantization in ("float32", "int8"):
                folder = Path(scratch, quantization)
                export_ctranslate2(model, folder, quantization=quantization)
                found = from_readme(folder)(texts)
                report[f"ctranslate2 {quantization}"] = compare(model, texts, found, "ctranslate2", arguments.tie)
            # int8 changes more than rounding: the share is enough.
            report["ctranslate2 int8"].pop("differences")
        if arguments.only != "ctranslate2":
            architecture = "pegasus" if model.model_config.norm_first else "marian"
            folder = Path(scratch, architecture)
            export_marian(model, folder, architecture=architecture)
            found = from_readme(folder)(texts)
            report[f"transformers {architecture}"] = compare(model, texts, found, "transformers", arguments.tie)
    print(json.dumps(report, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
