"""Threads that stand in for processes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from transformer_jax.system.distributed import exchange, store


class Fellows:
    """So many processes, with a store of their own in place of JAX's."""

    def __init__(self, monkeypatch, count):
        self.count, self.keys, self.here = count, {}, threading.local()
        replacements = {"put": self._put, "find": self.keys.get, "delete": self._delete, "count": lambda: count}
        for name, replacement in replacements.items():
            monkeypatch.setattr(store, name, replacement)
        monkeypatch.setattr(store, "index", lambda: self.here.index)
        for module, names in ((exchange, ("count", "index")),):
            for name in names:
                monkeypatch.setattr(module, name, getattr(store, name))

    def do(self, work):
        """What `work(index)` gives or raises in each of them, in order."""

        def one(index):
            self.here.index = index
            try:
                return work(index)
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(one, range(self.count)))

    def _put(self, key, value):
        assert key not in self.keys
        time.sleep(0.001 * self.here.index)
        self.keys[key] = value

    def _delete(self, key):
        for each in [each for each in list(self.keys) if f"{each}/".startswith(f"{key}/")]:
            del self.keys[each]
