"""AG's News Topic Classification (Zhang, Zhao and LeCun, 2015) as a TFDS builder: news in four topics.

Importing this module imports tensorflow-datasets, which is slow, and registers `ag_news` with it.
"""

import hashlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from transformer_jax.data.readers import content_digest, find_file
from transformer_jax.data.tfds_sets import check_network, checked_folder
from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, as_path
from transformer_jax.tasks.classification.labelled import AG_NEWS_CLASSES, AG_NEWS_COLUMNS, Labelled, read_labelled

CLASSES = AG_NEWS_CLASSES

URL = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/"

SPLITS = {
    "train": (120_000, "b1a00f826fdfbd249f79597b59e1dc12"),
    "test": (7_600, "d52ea96a97a2d943681189a97654912d"),
}
"""Split to the rows and the MD5 of its CSV file when downloaded."""


class AgNews(tfds.core.GeneratorBasedBuilder):
    """AG News in the form of Zhang, Zhao and LeCun: title and description, joined by a space, and one of four topics.

    Files come from the public repository, or from a folder (TFDS's `manual_dir`) with `train.csv` and `test.csv`, gzip
    or plain; these may hold fewer rows, and a split whose file is missing is absent. TFDS compares SHA-256 checksums,
    which are not published for these files; so the MD5 that torchtext publishes, and the rows, are checked here.
    """

    name = "ag_news"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Not needed with a network; without one, copy the files of {URL} into the folder."

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Titles and descriptions of news articles in four topics.",
            homepage="https://github.com/mhjabreel/CharCnn_Keras/tree/master/data/ag_news_csv",
            citation=_CITATION,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=list(CLASSES))}
            ),
            supervised_keys=("text", "label"),
            disable_shuffling=True,  # row i of the files stays record i
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        try:
            folder = as_path(dl_manager.manual_dir)
        except AssertionError:  # how TFDS reports that there is no such folder
            splits = _download(dl_manager)
        else:
            files = local_files(folder)
            splits = {split: _read(path) for split, (path,) in files.items()}
            for split, (path,) in files.items():
                rows, md5 = SPLITS[split]
                if len(splits[split]) >= rows and content_digest(path, "md5") != md5:
                    raise UserError(
                        f"{path} is not {split}.csv of AG News (its MD5 differs from {md5}); copy it from {URL}, or "
                        "read files of your own with config.data.name=text."
                    )
        return {split: self._generate_examples(records) for split, records in splits.items()}

    def _generate_examples(self, records: list[Labelled]) -> Iterator[tuple[int, dict[str, str]]]:
        for row, record in enumerate(records):
            yield row, {"text": record.text, "label": record.label}


def local_files(folder: str | AnyPath, config: str = "") -> dict[str, tuple[AnyPath, ...]]:
    """The file of each split in a folder, gzip or plain.

    Args:
        folder: with `train.csv` or `test.csv`.
        config: empty, as the builder has no configurations.

    Raises:
        UserError: if the folder does not exist, or holds neither file.
    """
    folder = checked_folder(folder, "AG News")
    found = {split: find_file(folder, f"{split}.csv") for split in SPLITS}
    files: dict[str, tuple[AnyPath, ...]] = {split: (path,) for split, path in found.items() if path is not None}
    if not files:
        raise UserError(f"{folder} has no train.csv or test.csv; copy them from {URL} into it, gzip or plain.")
    return files


def _read(path: AnyPath) -> list[Labelled]:
    return read_labelled(path, classes=CLASSES, columns=AG_NEWS_COLUMNS)


def _download(dl_manager: tfds.download.DownloadManager) -> dict[str, list[Labelled]]:
    urls = {split: f"{URL}{split}.csv" for split in SPLITS}
    check_network(urls["test"], "AG News")
    downloaded = dl_manager.download(urls)
    splits = {}
    for split, (rows, md5) in SPLITS.items():
        path = as_path(downloaded[split])
        content = path.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise UserError(f"{urls[split]} is not the file of the known MD5 {md5}; delete {path} and try again.")
        splits[split] = _read(path)
        if len(splits[split]) != rows:
            raise UserError(
                f"{urls[split]} has {len(splits[split]):,} rows instead of {rows:,}; delete {path} and try again."
            )
    return splits


_CITATION = """\
@inproceedings{zhang2015character,
  title = {Character-level Convolutional Networks for Text Classification},
  author = {Zhang, Xiang and Zhao, Junbo and LeCun, Yann},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {28},
  year = {2015},
}"""
