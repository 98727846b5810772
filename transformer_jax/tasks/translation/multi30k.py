"""Multi30k (Elliott et al., 2016 and 2017) as a TFDS builder: image captions in English, German and French.

Importing this module imports tensorflow-datasets, which is slow, and registers `multi30k` with it.
"""

import itertools
from collections.abc import Iterator

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.utils import Size

from transformer_jax.data.readers import find_file, read_lines, read_pairs
from transformer_jax.data.tfds_sets import check_content, check_network, checked_folder
from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, as_path

LANGUAGES = ("en", "de", "fr")
URL = "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"

SPLITS = {
    "train": ("train", 29_000),
    "validation": ("val", 1_014),
    "test_2016_flickr": ("test_2016_flickr", 1_000),
    "test_2017_flickr": ("test_2017_flickr", 1_000),
    "test_2017_mscoco": ("test_2017_mscoco", 461),
    "test_2018_flickr": ("test_2018_flickr", 1_071),
}
"""Split to the stem of its files and the lines they have when downloaded."""

CHECKSUMS = {
    "train.de.gz": (637_044, "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
    "train.en.gz": (568_929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
    "train.fr.gz": (604_242, "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c"),
    "val.de.gz": (24_681, "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
    "val.en.gz": (21_650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
    "val.fr.gz": (23_001, "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9"),
    "test_2016_flickr.de.gz": (22_890, "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"),
    "test_2016_flickr.en.gz": (21_077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"),
    "test_2016_flickr.fr.gz": (22_310, "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90"),
}
"""File to size and SHA-256. None are known for the 2017 and 2018 test sets, whose lines are counted instead."""

CONTENTS = {
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "train.fr": "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "val.fr": "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "test_2016_flickr.fr": "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
}
"""File, without `.gz`, to the SHA-256 of its content: a folder may hold the files plain, or recompressed."""


class Multi30k(tfds.core.GeneratorBasedBuilder):
    """Multi30k, task 1, raw text: one configuration per language pair, such as `multi30k/de-en`.

    Files come from the public repository at a fixed commit, or from a folder (TFDS's `manual_dir`); splits whose files
    are missing in that folder are absent.
    """

    name = "multi30k"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Not needed with a network; without one, copy the files of {URL} into the folder."
    BUILDER_CONFIGS = [  # noqa: RUF012  (TFDS's own form)
        tfds.core.BuilderConfig(name=f"{source}-{target}", description=f"From {source} to {target}.")
        for source, target in itertools.permutations(LANGUAGES, 2)
    ]
    url_infos = {  # noqa: RUF012  (takes the place of a checksums.tsv)
        URL + name: UrlInfo(size=Size(size), checksum=checksum, filename=name)
        for name, (size, checksum) in CHECKSUMS.items()
    }

    def _info(self) -> tfds.core.DatasetInfo:
        languages = _languages(self.builder_config.name)
        return self.dataset_info_from_configs(
            description="Image captions in English with their translations into German and French.",
            homepage="https://github.com/multi30k/dataset",
            citation=_CITATION,
            features=tfds.features.Translation(languages=languages),
            supervised_keys=languages,
            disable_shuffling=True,  # line i of the files stays record i
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        languages = _languages(self.builder_config.name)
        try:
            folder = as_path(dl_manager.manual_dir)
        except AssertionError:  # how TFDS reports that there is no such folder
            files = _download(dl_manager, languages)
        else:
            files = local_files(folder, self.builder_config.name)
            _check_files(files, languages)
        return {split: self._generate_examples(read_pairs(*paths)) for split, paths in files.items()}

    def _generate_examples(self, pairs: list[tuple[str, str]]) -> Iterator[tuple[int, dict[str, str]]]:
        languages = _languages(self.builder_config.name)
        for line, pair in enumerate(pairs):
            yield line, dict(zip(languages, pair, strict=True))


def local_files(folder: str | AnyPath, config: str) -> dict[str, tuple[AnyPath, AnyPath]]:
    """The files of a folder that make up a language pair, by split; either gzip or, without `.gz`, plain.

    Args:
        folder: with files named as in the public repository, `train.de.gz` and so on.
        config: the language pair, such as "de-en".

    Raises:
        UserError: if the folder does not exist, or holds no complete split.
    """
    folder = checked_folder(folder, "Multi30k")
    found = {}
    for split, (stem, _) in SPLITS.items():
        source, target = (find_file(folder, f"{stem}.{language}") for language in _languages(config))
        if source is not None and target is not None:
            found[split] = (source, target)
    if not found:
        source_language, target_language = _languages(config)
        raise UserError(
            f"{folder} has no Multi30k files for {config}; copy train.{source_language}.gz, "
            f"train.{target_language}.gz and their like from {URL} into it."
        )
    return found


def _check_files(files: dict[str, tuple[AnyPath, AnyPath]], languages: tuple[str, str]) -> None:
    """Refuse files that are not those of the public repository."""
    for split, paths in files.items():
        stem, expected = SPLITS[split]
        names = {path: f"{stem}.{language}" for path, language in zip(paths, languages, strict=True)}
        check_content(names, CONTENTS, "Multi30k", URL)
        lines = len(read_lines(paths[0]))
        if lines != expected:
            raise UserError(f"{paths[0]} has {lines:,} lines instead of {expected:,}; copy it from {URL}.")


def _languages(pair: str) -> tuple[str, str]:
    source, target = pair.split("-")
    return source, target


def _download(
    dl_manager: tfds.download.DownloadManager, languages: tuple[str, str]
) -> dict[str, tuple[AnyPath, AnyPath]]:
    """Fetch all splits; TFDS compares the checksums, the lines are counted here."""
    urls = {
        split: {language: f"{URL}{stem}.{language}.gz" for language in languages} for split, (stem, _) in SPLITS.items()
    }
    check_network(URL + "val.en.gz", "Multi30k")
    downloaded = dl_manager.download(urls)
    files = {}
    for split, (_, expected) in SPLITS.items():
        source, target = (as_path(downloaded[split][language]) for language in languages)
        lines = len(read_pairs(source, target))
        if lines != expected:
            raise UserError(
                f"{urls[split][languages[0]]} has {lines:,} lines instead of {expected:,}; delete {source} and "
                "download it again."
            )
        files[split] = (source, target)
    return files


_CITATION = """\
@inproceedings{elliott-etal-2016-multi30k,
  title = {Multi30K: Multilingual English-German Image Descriptions},
  author = {Elliott, Desmond and Frank, Stella and Sima'an, Khalil and Specia, Lucia},
  booktitle = {Proceedings of the 5th Workshop on Vision and Language},
  pages = {70--74},
  year = {2016},
}
@inproceedings{elliott-etal-2017-findings,
  title = {Findings of the Second Shared Task on Multimodal Machine Translation and Multilingual Image Description},
  author = {Elliott, Desmond and Frank, Stella and Barrault, Lo{\\"i}c and Bougares, Fethi and Specia, Lucia},
  booktitle = {Proceedings of the Second Conference on Machine Translation},
  pages = {215--233},
  year = {2017},
}"""
