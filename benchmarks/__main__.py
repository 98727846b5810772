"""`python -m benchmarks NAME [NAME...]`: measure, and print one JSON object per line."""

import argparse
import importlib
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from benchmarks import page, tpu_page
from benchmarks.results import QUICK, Record, emit, read
from benchmarks.settings import Settings, Unavailable
from benchmarks.tpu_chips import TOPOLOGIES

BENCHMARKS = ("train", "quality", "decode", "serving", "startup", "pipeline", "memory", "roofline", "scaling")
"""Module names; each has `run(settings)`, which yields records."""
COMPILED = "tpu_compile"
"""Another one, which measures nothing, is not part of "all" and has its own page."""


def main(argv: list[str] | None = None) -> int:
    """Run the named benchmarks; the exit status is 1 if one of them could not run or failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = (*BENCHMARKS, COMPILED)
    parser.add_argument("names", nargs="+", choices=(*known, "all"), metavar="NAME", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="less work: all within 10 minutes on 2 cores")
    parser.add_argument("--data", type=Path, help="folder with multi30k, ag_news, couplet [$TRANSFORMER_JAX_DATA]")
    parser.add_argument("--threads", type=int, default=2, help="threads of each measured process [2]")
    parser.add_argument("--model", type=Path, help="folder of a trained translator")
    parser.add_argument("--minutes", type=float, help="quality: training time of the peer [20, or 0.2 if --quick]")
    parser.add_argument("--topologies", nargs="+", default=(), choices=TOPOLOGIES, help="tpu_compile: only these")
    parser.add_argument("--curve", type=Path, help="quality: reuse this curve of the peer from an earlier run")
    parser.add_argument("--out", type=Path, help="file to append the records to")
    parser.add_argument("--page", type=Path, help="page to write from the records, including those already in --out")
    options = parser.parse_args(argv)
    names = BENCHMARKS if "all" in options.names else options.names
    fields = ("quick", "data", "threads", "model", "minutes", "topologies", "curve")
    settings = Settings(**{field: getattr(options, field) for field in fields})
    earlier = read(options.out) if options.out is not None and options.out.exists() else []
    records: list[Record] = []
    status = 0
    for name in names:
        try:
            for found in importlib.import_module(f"benchmarks.{name}").run(settings):
                record = replace(found, work=QUICK + found.work) if settings.quick else found
                emit(record, options.out)
                records.append(record)
        except Unavailable as reason:
            print(f"{name} is left out: {reason}", file=sys.stderr)
            status = 1
        except Exception:
            traceback.print_exc()
            status = 1
        if options.page is not None and (earlier or records):
            (tpu_page if names == [COMPILED] else page).write(options.page, records, _published(options), earlier)
    return status


def _published(options: argparse.Namespace) -> str:
    """The command as the page shows it, without local paths."""
    words = ["python -m benchmarks", *options.names, *["--quick"] * options.quick, f"--threads {options.threads}"]
    if options.minutes is not None:
        words.append(f"--minutes {options.minutes:g}")
    words += [f"--{name} {name.upper()}" for name in ("data", "model", "curve") if getattr(options, name) is not None]
    words += ["--topologies", *options.topologies] * bool(options.topologies)
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
