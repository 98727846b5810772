"""The configs of this repository, with the data of `--data`."""

from pathlib import Path

from benchmarks.settings import Settings
from transformer_jax.config import Config, from_config_dict, load_config_file

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("numerals", "multi30k", "classification_sample", "ag_news", "couplet_sample", "couplet")
EMBEDDED = ("numerals", "classification_sample", "couplet_sample")
"""Those with embedded data."""
QUICK = ("numerals", "multi30k")


def shipped_options(name: str, settings: Settings) -> list[str]:
    """Options of `train.py` for the config `name`, a file of `configs/`.

    Raises:
        Unavailable: if its data is missing.
    """
    options = [f"--config={ROOT / 'configs' / name}.py"]
    if name not in EMBEDDED:
        options.append(f"--config.data.manual_dir={settings.folder(name)}")
    return options


def shipped_config(name: str, settings: Settings) -> Config:
    """The config `name`.

    Raises:
        Unavailable: if its data is missing.
    """
    config = load_config_file(str(ROOT / "configs" / f"{name}.py"))
    if name not in EMBEDDED:
        config.data.manual_dir = str(settings.folder(name))
    return from_config_dict(config)
