"""Options of the benchmarks."""

import os
from dataclasses import dataclass
from pathlib import Path

DATA_BESIDE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data"


class Unavailable(Exception):
    """This machine cannot run a benchmark or a peer; the message gives the remedy."""


@dataclass(frozen=True)
class Settings:
    """Options of the command line."""

    quick: bool = False
    """Less work and fewer repetitions."""
    data: Path | None = None
    """Folder with `multi30k/`, `ag_news/` and `couplet/`; default: see `folder`."""
    threads: int = 2
    """Threads of each measured process."""
    model: Path | None = None
    """Folder of a trained translator, for benchmarks that need one."""
    minutes: float | None = None
    """Training time of the peer in `quality`; None for its default."""
    topologies: tuple[str, ...] = ()
    """Topologies of `tpu_compile`; empty for its default."""
    curve: Path | None = None
    """Curve of the peer from an earlier run of `quality`, instead of training it again."""

    def folder(self, name: str) -> Path:
        """The folder of a data set.

        Raises:
            Unavailable: if it is missing.
        """
        root = self.data or Path(os.environ.get("TRANSFORMER_JAX_DATA", DATA_BESIDE_CHECKOUT))
        path = root / name
        if not path.is_dir():
            raise Unavailable(f"{path} is missing; name the folder that contains {name} with --data.")
        return path
