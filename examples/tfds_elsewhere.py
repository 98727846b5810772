"""Use our TFDS builder in your own loop: IBM Model 1 (Brown et al., 1993) learns a dictionary from Multi30k.

Run `python examples/tfds_elsewhere.py [FOLDER]`, where FOLDER has Multi30k's files train.de.gz and train.en.gz.
Without a folder, it learns from the four sentences below. TensorFlow is not needed.
"""

import sys
import tempfile
from collections import defaultdict

import tensorflow_datasets as tfds

from transformer_jax import Multi30k

GERMAN = ["ein Hund rennt", "ein Hund schläft", "ein Kind rennt", "das Kind schläft"]
ENGLISH = ["a dog runs", "a dog sleeps", "a child runs", "the child sleeps"]


def read(folder, data_dir, split="train"):
    """The records of a split, prepared by TFDS in `data_dir` from the raw files in `folder`."""
    builder = Multi30k(config="de-en", data_dir=data_dir, file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    return builder.as_data_source(split)  # a sequence with len() and [i], as data loaders expect


def dictionary(pairs, rounds=10):
    """Probabilities of English words given German ones, `{german: {english: p}}`, by expectation maximization."""
    table = defaultdict(lambda: defaultdict(lambda: 1.0))
    for _ in range(rounds):
        counts = defaultdict(lambda: defaultdict(float))
        for german, english in pairs:
            for word in english:
                total = sum(table[other][word] for other in german)
                for other in german:
                    counts[other][word] += table[other][word] / total
        table = {
            german: {english: count / sum(found.values()) for english, count in found.items()}
            for german, found in counts.items()
        }
    return table


def main(folder=None, num_pairs=1000):
    """Learn a dictionary from the first pairs of a folder, or from the sentences above."""
    if folder is None:
        return dictionary([(g.split(), e.split()) for g, e in zip(GERMAN, ENGLISH, strict=True)])
    with tempfile.TemporaryDirectory() as data_dir:
        records = read(folder, data_dir)
        texts = [
            [records[i][side].decode().split() for side in ("de", "en")] for i in range(min(len(records), num_pairs))
        ]
    return dictionary(texts)


if __name__ == "__main__":
    for german, found in list(main(*sys.argv[1:2]).items())[:10]:
        english = max(found, key=found.get)
        print(f"{german}: {english} ({found[english]:.2f})")
