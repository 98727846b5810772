"""Train a model, as `transformer-jax train` does; without arguments: the embedded example, into runs/numerals."""

import sys

from transformer_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
