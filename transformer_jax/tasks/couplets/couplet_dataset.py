"""The couplet set of wb14123 (对联, collected from a blog of couplets) as a TFDS builder.

Importing this module imports tensorflow-datasets, which is slow, and registers `couplet` with it.
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from transformer_jax.data.readers import find_file, read_lines
from transformer_jax.data.tfds_sets import check_network, checked_folder
from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, as_path
from transformer_jax.tasks.couplets.sources import read_couplets

URL = "https://github.com/wb14123/couplet-dataset/releases/download/1.0/couplet.tar.gz"

SPLITS = {"train": 770_491, "test": 4_000}
"""Split to its pairs in the public archive."""


class Couplet(tfds.core.GeneratorBasedBuilder):
    """Pairs of an upper and a lower line, whose files have a space after each character, stored without spaces.

    The files come from the public archive, or from a folder (TFDS's `manual_dir`) laid out like it, which may hold
    fewer pairs, or one split only. The archive's checksum is not known here: instead, its files must be there and have
    the set's number of lines.
    """

    name = "couplet"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Not needed with a network; without one, unpack {URL} elsewhere and name its folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Chinese couplets: an upper line and a lower line of the same length that answers it.",
            homepage="https://github.com/wb14123/couplet-dataset",
            features=tfds.features.FeaturesDict({"upper": tfds.features.Text(), "lower": tfds.features.Text()}),
            supervised_keys=("upper", "lower"),
            disable_shuffling=True,  # line i of the files stays record i
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        try:
            files = local_files(dl_manager.manual_dir)
        except AssertionError:  # how TFDS reports that there is no such folder
            files = _download(dl_manager)
        couplets = {split: read_couplets(*paths) for split, paths in files.items()}
        for split, most in SPLITS.items():
            if len(couplets.get(split, ())) > most:
                raise UserError(
                    f"{files[split][0]} has more than the {most:,} lines of the couplet set; copy it from {URL}, or "
                    "read files of your own with config.data.name=text."
                )
        return {split: self._generate_examples(pairs) for split, pairs in couplets.items()}

    def _generate_examples(self, couplets: list[tuple[str, str]]) -> Iterator[tuple[int, dict[str, str]]]:
        for line, (upper, lower) in enumerate(couplets):
            yield line, {"upper": upper, "lower": lower}


def local_files(folder: str | AnyPath, config: str = "") -> dict[str, tuple[AnyPath, AnyPath]]:
    """The files train/in.txt and train/out.txt, test/in.txt and test/out.txt of a folder, by split; plain or gzip.

    Args:
        folder: the archive's folder `couplet`, or one like it.
        config: not used, the builder has no configurations.

    Raises:
        UserError: if the folder does not exist, or holds no complete split.
    """
    folder = checked_folder(folder, "the couplet set")
    found = {}
    for split in SPLITS:
        upper, lower = (find_file(folder / split, name) for name in ("in.txt", "out.txt"))
        if upper is not None and lower is not None:
            found[split] = (upper, lower)
    if not found:
        raise UserError(
            f"{folder} has no couplets; it needs train/in.txt and train/out.txt (or with .gz), as unpacked from {URL}."
        )
    return found


def check_counts(files: dict[str, tuple[AnyPath, AnyPath]]) -> None:
    """Check that files have the numbers of lines of the public archive.

    Raises:
        UserError: if a file is missing or has another number of lines.
    """
    for split, expected in SPLITS.items():
        for path in files[split]:
            lines = len(read_lines(path))
            if lines != expected:
                raise UserError(
                    f"{path} has {lines:,} lines instead of {expected:,}; delete it and download {URL} again."
                )


def _download(dl_manager: tfds.download.DownloadManager) -> dict[str, tuple[AnyPath, AnyPath]]:
    check_network(URL, "the couplet set")
    folder = as_path(dl_manager.download_and_extract(URL)) / "couplet"
    files = {split: (folder / split / "in.txt", folder / split / "out.txt") for split in SPLITS}
    check_counts(files)
    return files
