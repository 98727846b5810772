"""A fake Google Cloud Storage: objects in memory that can't be appended to, without real folders."""

from typing import ClassVar

from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Replaces `gcsfs`; `broken` is an exception to raise, as its client does without network or credentials."""

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
        """Does nothing: folders are only common prefixes of names."""

    def makedirs(self, path, exist_ok=False):
        """Does nothing, like `mkdir`."""

    def mv(self, *arguments, **options):
        raise AssertionError("folders can't be renamed")


def objects():
    """All objects by name, `bucket/...`."""
    return {name.lstrip("/"): file.getvalue() for name, file in Bucket.store.items()}
