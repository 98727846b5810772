"""Threads that stand in for processes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from transformer_jax.system.distributed import exchange


class Fellows:
    """Processes with a key-value store of their own in place of JAX's."""

    def __init__(self, monkeypatch, count):
        self.count, self.keys, self.here = count, {}, threading.local()
        replacements = {
            "put": self._put,
            "get": lambda key: self.keys[key],
            "get_all": self._get_all,
            "delete": self._delete,
            "process_count": lambda: count,
            "process_index": lambda: self.here.index,
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(exchange, name, replacement)

    def do(self, work):
        """What `work(index)` returns or raises in each of them, in order."""

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

    def _get_all(self, key):
        return {
            name.removeprefix(f"{key}/"): value for name, value in list(self.keys.items()) if name.startswith(f"{key}/")
        }

    def _delete(self, key):
        for each in [each for each in list(self.keys) if f"{each}/".startswith(f"{key}/")]:
            del self.keys[each]
