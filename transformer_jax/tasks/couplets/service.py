"""Couplets over HTTP: /v1/couplets."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from transformer_jax.tasks.couplets.rules import Rules
from transformer_jax.tasks.service import Output, PairService, SearchRequest, Text


class CoupletRequest(SearchRequest):
    """Upper lines to answer."""

    rules: Text | None = Field(
        None,
        max_length=1000,
        description="Rules that lower lines keep, such as length,tones=2,distinct=off; default: the model's.",
    )


class Lower(Output):
    """A lower line."""

    gave_up: list[str] = Field(description="Hard rules that no lower line can keep together with the others.")


class CoupletResult(Lower):
    """The best lower line to an upper line."""

    alternatives: list[Lower] = Field([], description="The next best ones, best first, if n_best is above 1.")


class CoupletService(PairService):
    """Answers with a `CoupletWriter`."""

    request = CoupletRequest
    result = CoupletResult
    sample = "春风"

    def check(self, model: Any, request: CoupletRequest) -> None:
        """Refuse lines that the model does not accept, and rules that there are not."""
        model.check(request.texts)
        if request.rules is not None:
            Rules.parse(request.rules)

    def arguments(self, request: CoupletRequest) -> dict[str, Any]:
        """The options of the search."""
        return request.search | ({} if request.rules is None else {"rules": request.rules})

    def shown(self, outputs: Sequence[Any]) -> BaseModel:
        """The lower lines to an upper line."""
        lowers = [{"text": each.text, "score": round(each.score, 4), "gave_up": list(each.gave_up)} for each in outputs]
        return CoupletResult(**lowers[0], alternatives=[Lower(**lower) for lower in lowers[1:]])


SERVICE = CoupletService("/v1/couplets", "write the lower lines of couplets (对联)")
