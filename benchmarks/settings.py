"""What a person may choose about a run of the benchmarks."""

import os
from dataclasses import dataclass
from pathlib import Path

DATA_BESIDE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data"


class Unavailable(Exception):
    """A benchmark or a peer that this machine can't run; the message says what to do about it."""


@dataclass(frozen=True)
class Settings:
    """The options of the command line, as benchmarks see them."""

    quick: bool = False
    """Less work and fewer repetitions, for a look at the figures."""
    data: Path | None = None
    """A folder with `multi30k/`, `ag_news/` and `couplet/`; None: where `folder` looks."""
    threads: int = 2
    """Of every process that is measured."""
    model: Path | None = None
    """A trained translator, for benchmarks that need one."""
    minutes: float | None = None
    """Of training, in `quality`; None: its own default."""
    topologies: tuple[str, ...] = ()
    """Of `tpu_compile`; empty: its own."""
    curve: Path | None = None
    """A curve of the peer that `quality` has written before, instead of training the peer again."""

    def folder(self, name: str) -> Path:
        """The folder of a data set.

        Raises:
            Unavailable: if it isn't there.
        """
        root = self.data or Path(os.environ.get("TRANSFORMER_JAX_DATA", DATA_BESIDE_CHECKOUT))
        path = root / name
        if not path.is_dir():
            raise Unavailable(f"{path} is not there; name the folder that holds {name} with --data.")
        return path
