"""How models answer requests over HTTP: what a request and its answers are, checked by pydantic, and who answers.

Imported only where there is a server, as pydantic belongs to the extra `serve`.
"""

import abc
import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from transformer_jax.system import UserError


def _whole(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be Unicode, but has half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]


class Request(BaseModel):
    """Texts, and options that apply to all of them."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    texts: list[Text] = Field(min_length=1, description="The texts; the results are in their order.")

    compiled: ClassVar[tuple[str, ...]] = ()
    """Options whose every combination of values is a program of its own; so their values must be few."""
    streams: ClassVar[Any] = False
    """Whether the answer is wanted in pieces, each as soon as it is known."""

    @property
    def options(self) -> dict[str, Any]:
        """All but the texts. Requests with equal options are answered together."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "texts"}


def _tenths(value: float) -> float:
    if abs(10 * value - round(10 * value)) > 1e-6:
        raise ValueError("must be a multiple of 0.1")
    return round(value, 1)


class SearchRequest(Request):
    """A request whose answers are searched for."""

    beam: int | None = Field(None, ge=1, description="Hypotheses kept in the search; default: the model's.")
    n_best: int = Field(1, ge=1, description="Outputs for each text: the best one and its alternatives.")
    alpha: Annotated[float, AfterValidator(_tenths)] | None = Field(
        None, ge=0, le=2, description="Exponent of the length penalty, a multiple of 0.1; default: the model's."
    )

    compiled: ClassVar[tuple[str, ...]] = ("beam", "n_best", "alpha")

    @property
    def search(self) -> dict[str, Any]:
        """The options as arguments of a model's `search`; those that are not given are left out."""
        given = {"beam_size": self.beam, "alpha": self.alpha, "n_best": self.n_best if self.n_best > 1 else None}
        return {name: value for name, value in given.items() if value is not None}


class Output(BaseModel):
    """An output of a search."""

    text: str
    score: float = Field(description="Its log-probability over the length penalty, in nats; outputs are ranked by it.")


class SearchResult(Output):
    """The best output for a text."""

    alternatives: list[Output] = Field([], description="The next best ones, best first, if n_best is above 1.")


class Service(abc.ABC):
    """Answers requests with the models of a task."""

    path: str
    """Where it is served, such as "/v1/translate"."""
    summary: str
    """A phrase for the list of endpoints."""
    request: type[Request]
    result: type[BaseModel]
    """The answer to one text."""
    sample: str = "a b c"
    """A text that every model accepts; the first searches, which compile, are for it."""

    @abc.abstractmethod
    def check(self, model: Any, request: Any) -> None:
        """Refuse a request that cannot be answered.

        Raises:
            UserError: naming the text or option and the remedy, but no file.
        """

    @abc.abstractmethod
    def results(self, model: Any, requests: Sequence[Any], batch_size: int | None) -> list[list[BaseModel]]:
        """The results of checked requests with equal options: for each request one for each text.

        Args:
            model: a loaded model.
            requests: at least one.
            batch_size: texts at a time; default: the model's.
        """

    def pieces(self, model: Any, request: Any) -> Iterator[str]:
        """Yield the answer to a checked request whose `streams` is true; the pieces add up to it."""
        raise NotImplementedError


class PairService(Service):
    """Answers with any `Seq2SeqModel` whose `search` gives texts, such as `Translator`."""

    request: type[Request] = SearchRequest
    result: type[BaseModel] = SearchResult

    def __init__(self, path: str, summary: str) -> None:
        """Make a service; see `Service`."""
        self.path, self.summary = path, summary

    def check(self, model: Any, request: Any) -> None:
        """Refuse what the model does not accept."""
        model.check(request.texts)

    def results(self, model: Any, requests: Sequence[Any], batch_size: int | None) -> list[list[BaseModel]]:
        """Search for the outputs of all texts together."""
        texts = [text for request in requests for text in request.texts]
        found = model.search(texts, batch_size=batch_size, **self.arguments(requests[0]))
        return dealt(requests, [self.shown(outputs) for outputs in found])

    def arguments(self, request: Any) -> dict[str, Any]:
        """The options of a request as arguments of the model's `search`."""
        return dict(request.search)

    def shown(self, outputs: Sequence[Any]) -> BaseModel:
        """The result for a text whose outputs these are, best first."""
        best, *others = [Output(text=output.text, score=round(output.score, 4)) for output in outputs]
        return SearchResult(text=best.text, score=best.score, alternatives=others)


def dealt(requests: Sequence[Request], results: Sequence[BaseModel]) -> list[list[BaseModel]]:
    """The results for all texts of some requests, request by request."""
    ends = [*itertools.accumulate(len(request.texts) for request in requests)]
    return [list(results[first:end]) for first, end in zip([0, *ends], ends, strict=False)]


class StreamedRequest(SearchRequest):
    """A request that may ask for its answer in pieces."""

    stream: bool = Field(
        False, description="Answer with server-sent events, piece by piece, as each is found by a greedy search."
    )

    @model_validator(mode="after")
    def _check_stream(self) -> "StreamedRequest":
        if self.stream:
            for name in SearchRequest.compiled:
                if name in self.model_fields_set:
                    raise ValueError(f"stream cannot be combined with {name}; drop one of them")
            if len(self.texts) > 1:
                raise ValueError("stream answers one text, but texts has more; send a request for each")
        return self

    @property
    def streams(self) -> bool:
        """See `Request.streams`."""
        return self.stream


def check_width(request: Request, most: int) -> None:
    """Refuse searches that are wider than a server allows.

    Raises:
        UserError: naming the option.
    """
    for name in ("beam", "n_best"):
        value = getattr(request, name, None)
        if value is not None and value > most:
            raise UserError(f"{name} is {value:,}, but this server allows at most {most:,}; lower it.")
