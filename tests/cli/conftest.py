from tests.commands import classifier, couplet_writer, run, translator

__all__ = ["classifier", "couplet_writer", "run", "translator"]
