"""Classification over HTTP: /v1/classify."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from transformer_jax.tasks.service import Request, Service, dealt


class ClassifyRequest(Request):
    """Texts to classify."""

    explain: bool = Field(False, description="Also give the effect of each word.")


class Word(BaseModel):
    """A word of a text, and what it contributes."""

    text: str
    start: int = Field(description="Its place in the text, in code points from 0.")
    effect: float = Field(description="By how much the log-odds of the class, in nats, fall if it is left out.")


class ClassifyResult(BaseModel):
    """The class of a text."""

    label: str = Field(description="The likeliest class.")
    probabilities: dict[str, float] = Field(description="Of every class.")
    words: list[Word] | None = Field(None, description="With explain: the words that the model has read.")


class ClassifyService(Service):
    """Answers with a `TextClassifier`."""

    path = "/v1/classify"
    summary = "classify texts"
    request = ClassifyRequest
    result = ClassifyResult

    def check(self, model: Any, request: ClassifyRequest) -> None:
        """Refuse blank texts."""
        model.check(request.texts)

    def results(self, model: Any, requests: Sequence[ClassifyRequest], batch_size: int | None) -> list[list[BaseModel]]:
        """Classify all texts together."""
        texts = [text for request in requests for text in request.texts]
        size = {} if batch_size is None else {"batch_size": batch_size}
        found = model.classify(texts, explain=requests[0].explain, **size)
        return dealt(requests, [_shown(each) for each in found])


def _shown(said: Any) -> BaseModel:
    words = None
    if said.words is not None:
        words = [Word(text=word.text, start=word.start, effect=round(word.effect, 4)) for word in said.words]
    probabilities = {name: round(share, 6) for name, share in said.probabilities.items()}
    return ClassifyResult(label=said.label, probabilities=probabilities, words=words)


SERVICE = ClassifyService()
