"""`python -m benchmarks NAME [NAME...]`: measure, and print a JSON object a line."""

import argparse
import importlib
import shlex
import sys
from pathlib import Path

from benchmarks.results import emit, read
from benchmarks.settings import Settings, Unavailable

BENCHMARKS = ("train", "quality", "decode", "startup", "pipeline", "memory", "roofline", "scaling")
"""Each is the module of its name, with `run(settings)` that yields records."""


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks that are named; the exit status is 1 if one of them could not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="+", choices=(*BENCHMARKS, "all"), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="less work; all of them within 10 minutes on 2 cores")
    parser.add_argument("--data", type=Path, help="folder with multi30k, ag_news, couplet [$TRANSFORMER_JAX_DATA]")
    parser.add_argument("--threads", type=int, default=2, help="of every process that is measured [2]")
    parser.add_argument("--model", type=Path, help="folder of a trained translator")
    parser.add_argument("--minutes", type=float, help="quality: how long the peer trains [20, or 0.5 if --quick]")
    parser.add_argument("--curve", type=Path, help="quality: a curve of the peer, written before, to use again")
    parser.add_argument("--out", type=Path, help="file to append the records to")
    parser.add_argument("--page", type=Path, help="page to write from the records, those already in --out included")
    options = parser.parse_args(argv)
    names = BENCHMARKS if "all" in options.names else options.names
    fields = ("quick", "data", "threads", "model", "minutes", "curve")
    settings = Settings(**{field: getattr(options, field) for field in fields})
    records = []
    status = 0
    for name in names:
        try:
            for record in importlib.import_module(f"benchmarks.{name}").run(settings):
                emit(record, options.out)
                records.append(record)
        except Unavailable as reason:
            print(f"{name} is left out: {reason}", file=sys.stderr)
            status = 1
    if options.page is not None:
        page = importlib.import_module("benchmarks.page")
        command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)])
        page.write(options.page, records if options.out is None else read(options.out), command)
    return status


if __name__ == "__main__":
    sys.exit(main())
