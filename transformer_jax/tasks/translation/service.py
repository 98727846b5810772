"""Translation over HTTP: /v1/translate."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from transformer_jax.tasks.service import PairService, StreamedRequest, Text


class TranslateRequest(StreamedRequest):
    """Sentences to translate."""

    prefix: Text | None = Field(None, description="Beginning of every translation.")


class TranslateService(PairService):
    """Answers with a `Translator`."""

    request = TranslateRequest

    def check(self, model: Any, request: TranslateRequest) -> None:
        """Refuse texts and a prefix that the model does not accept."""
        model.check(request.texts, prefix=request.prefix)

    def arguments(self, request: TranslateRequest) -> dict[str, Any]:
        """The options of the search."""
        return request.search | ({} if request.prefix is None else {"prefix": request.prefix})

    def pieces(self, model: Any, request: TranslateRequest) -> Iterator[str]:
        """Yield the translation as it is found, by a greedy search."""
        yield from model.stream(request.texts[0], prefix=request.prefix)


SERVICE = TranslateService("/v1/translate", "translate sentences")
