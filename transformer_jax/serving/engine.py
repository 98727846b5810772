"""A model behind a service: it checks requests, answers those with equal options together, and keeps memory flat."""

import contextlib
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
from pydantic import BaseModel

from transformer_jax.decoding.scheduler import ROWS
from transformer_jax.sharding import replicated
from transformer_jax.system import UserError
from transformer_jax.system.runtime import release_memory
from transformer_jax.tasks.service import Request, Service

MOST_SEARCHES = 64
"""Searches whose programs are kept: each combination of beam, alpha and so on compiles programs of its own."""
COPIES = (1, 4, 8)
"""Of a service's sample, in the texts of the first searches: programs depend on the length of texts."""
RELEASE_SECONDS = 1.0
"""Between two returns of freed memory to the system."""


class Engine:
    """A loaded model and the service that answers with it."""

    def __init__(self, model: Any, service: Service, *, batch_size: int | None = None) -> None:
        """Bind a model to its service, on all devices of this process.

        Args:
            model: a loaded model.
            service: for models of its task.
            batch_size: texts at a time on each device; default: the model's.
        """
        self.model, self.service, self._batch_size = model, service, batch_size
        if jax.local_device_count() > 1 and hasattr(model, "params"):
            model.params = replicated(model.params)
        self._searches: set[Hashable] = set()
        self._released = time.monotonic()

    def check(self, request: Request) -> None:
        """Refuse a request that the model cannot answer; the error is that of `Service.check`."""
        self.service.check(self.model, request)

    def key(self, request: Request) -> Hashable:
        """Equal for requests that are answered together."""
        return tuple(request.options.items())

    def answer(self, requests: Sequence[Request]) -> list[list[BaseModel]]:
        """The results of checked requests with equal keys; to be called by one thread."""
        self._searches.add(tuple(getattr(requests[0], name) for name in requests[0].compiled))
        if len(self._searches) > MOST_SEARCHES:
            self._searches.clear()
            jax.clear_caches()
        results = self.service.results(self.model, requests, self._batch_size)
        if time.monotonic() - self._released > RELEASE_SECONDS:
            release_memory()
            self._released = time.monotonic()
        return results

    def pieces(self, request: Request) -> Iterator[str]:
        """Yield the answer to a checked request piece by piece."""
        return self.service.pieces(self.model, request)

    def warm_up(self) -> None:
        """Compile the programs of texts of some lengths: of one, of a few and of many at a time."""
        for copies in COPIES:
            for rows in ROWS:
                request = self.service.request(texts=[" ".join([self.service.sample] * copies)] * rows)
                with contextlib.suppress(UserError):  # too long for the model
                    self.check(request)
                    self.answer([request])
