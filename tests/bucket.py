"""A stand-in for Google Cloud Storage: objects in memory, which can't be appended to, and no folders of their own."""

from typing import ClassVar

from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Takes the place of `gcsfs`; `broken` stands for what its client raises without network or credentials."""

    protocol = ("gcs", "gs")
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    broken = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://").removeprefix("gcs://"))

    def _open(self, path, mode="rb", **options):
        assert "a" not in mode, "objects can't be appended to"
        if Bucket.broken is not None:
            raise Bucket.broken
        return super()._open(path, mode, **options)

    def info(self, path, **options):
        if Bucket.broken is not None:
            raise Bucket.broken
        return super().info(path, **options)

    def mkdir(self, path, create_parents=True, **options):
        """There are no folders, only names that begin alike."""

    def makedirs(self, path, exist_ok=False):
        """As `mkdir`."""

    def mv(self, *arguments, **options):
        raise AssertionError("folders can't be renamed")


def objects():
    """By name, `bucket/...`."""
    return {name.lstrip("/"): file.getvalue() for name, file in Bucket.store.items()}
