"""Train a model.

    python train.py [--config=configs/FILE.py[:ARGUMENT]] [--config.GROUP.FIELD=VALUE ...] [--workdir=DIR]

Without arguments: `configs/numerals.py` into `runs/numerals`, a few minutes on a laptop. The same command goes
on with a run that was interrupted.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

DEFAULT_CONFIG = Path(__file__).resolve().parent / "configs" / "numerals.py"


def main(argv: list[str]) -> int:
    """Read the flags and train; 0 if all went well, 2 for mistakes in what was asked."""
    if {"-h", "-help", "--help"} & set(argv):
        print(__doc__)
        return 0
    try:
        # Overrides of the config's fields are parsed while the flag is being defined.
        config = config_flags.DEFINE_config_file("config", str(DEFAULT_CONFIG), "The experiment.")
        workdir = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/NAME_OF_THE_CONFIG.")
        flags.FLAGS(argv)
        file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
        if not Path(file).is_file():
            return _refuse(f"--config={file} is no file; name one such as configs/multi30k.py:de-en.")
        value = config.value.copy_and_resolve_references()
    except (AttributeError, KeyError) as error:
        name = str(error).strip("\"'")
        return _refuse(f"the config has no field {name!r}; transformer_jax/config.py lists those that it has.")
    except (flags.Error, ImportError, OSError, SyntaxError, TypeError, ValueError) as error:
        return _refuse(str(error).partition("\n")[0])
    from transformer_jax.errors import UserError
    from transformer_jax.training import run

    name = "-".join(filter(None, [Path(file).stem, argument]))
    try:
        run(value, workdir.value or Path("runs") / name)
    except UserError as error:
        return _refuse(str(error))
    return 0


def _refuse(sentence: str) -> int:
    print(f"train.py: error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
