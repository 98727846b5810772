"""Chinese couplets (对联): upper lines to lower lines, rules, a `CoupletWriter`."""

from dataclasses import dataclass
from typing import ClassVar

from transformer_jax.system import check_fields
from transformer_jax.tasks.registry import register_task


@dataclass(frozen=True)
class CoupletConfig:
    """The group `config.couplet`."""

    rules: str = "length,punctuation,repetition,distinct,tones=1"
    """Rules that lower lines keep, as `Rules.parse` reads them; the default of the trained model."""
    extra_train: str = ""
    """A folder of further training couplets, with `train/in.txt` and `train/out.txt`."""
    blocklist: str = ""
    """A file of words, one a line; couplets that contain one are left out."""

    FILES: ClassVar[tuple[str, ...]] = ("extra_train", "blocklist")
    MOVED: ClassVar[dict[str, str]] = {
        "decoding.rules": "rules",
        "data.extra_train": "extra_train",
        "data.blocklist": "blocklist",
    }

    def __post_init__(self) -> None:
        check_fields(self, "config.couplet.{}".format)


register_task(
    "couplet",
    "transformer_jax.tasks.couplets.task:CoupletTask",
    "transformer_jax.tasks.couplets.generate:CoupletWriter",
    config=CoupletConfig,
    command="transformer_jax.tasks.couplets.command:COMMAND",
)
