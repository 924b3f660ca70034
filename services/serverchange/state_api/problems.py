"""Errors as problem details (RFC 9457): every one says what was wrong, where, and what to do.

Families by what the caller does: 4xx, change the request; 503, try again after `Retry-After`; 500, a bug of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serverchange.adapters.log_events import LogEvent
from serverchange.adapters.logs import get_logger
from serverchange.views import Problem

_log = get_logger("state_api")

PROBLEM_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 2
"""Seconds after which a client should come back: an outage of Postgres or Kafka heals within 15 s, or not soon."""

FAULTS_SHOWN_MAX: Final = 5


class ApiProblem(Exception):  # noqa: N818  (RFC 9457's own word)
    """A request that cannot be answered, and how to say so."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def unavailable(detail: str, *, retry_after_s: int = RETRY_AFTER_S) -> ApiProblem:
    """Return the problem for something that is away and will come back."""
    return ApiProblem(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"retry-after": str(retry_after_s)})


def unprocessable(detail: str) -> ApiProblem:
    """Return the problem for a value that is not what it should be."""
    return ApiProblem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


def problem_response(
    status: int, detail: str, *, instance: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return problem details as a response."""
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, instance=instance)
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, status, headers=dict(headers or {}), media_type=PROBLEM_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Have every error of `app` answered as problem details."""

    async def api_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiProblem)  # noqa: S101  (Starlette dispatches by type)
        return problem_response(error.status, error.detail, instance=request.url.path, headers=error.headers)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        status = 422 if error.status_code == 400 else error.status_code  # one answer for every body that is no JSON
        detail = _HINTS.get(error.status_code, str(error.detail))
        return problem_response(status, detail, instance=request.url.path, headers=error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return problem_response(422, _describe(error.errors()), instance=request.url.path)

    async def database(request: Request, error: Exception) -> Response:
        _log.warning(LogEvent.REQUEST_FAILED, path=request.url.path[:200], error=f"{type(error).__name__}: {error}")
        problem = unavailable("the database does not answer; try again")
        return problem_response(problem.status, problem.detail, instance=request.url.path, headers=problem.headers)

    async def bug(request: Request, error: Exception) -> Response:
        _log.error(LogEvent.REQUEST_FAILED, path=request.url.path[:200], exc_info=error)
        return problem_response(500, "a bug of ours; the log has the stack", instance=request.url.path)

    app.add_exception_handler(ApiProblem, api_problem)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(psycopg.OperationalError, database)
    app.add_exception_handler(Exception, bug)


_HINTS: Final = {
    400: "body: no JSON in UTF-8",
    404: "no such route; GET /openapi.json lists them",
    405: "this route does not take that method; see the Allow header",
}


def _describe(faults: Any) -> str:
    shown = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in faults[:FAULTS_SHOWN_MAX]]
    more = len(faults) - len(shown)
    return "; ".join(shown)[:1000] + (f"; and {more} more" if more > 0 else "")


_PROBLEM_CONTENT: Final = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_DESCRIPTIONS: Final = {
    401: "No token, or none that is known.",
    404: "Not known.",
    409: "The request contradicts what is.",
    413: "More than the limits allow.",
    422: "A value is not what it should be.",
    429: "Too many requests or streams; come back after Retry-After.",
    503: "Postgres, Kafka or the demanded position is not there; come back after Retry-After.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may answer these problems."""
    return {status: {"description": _DESCRIPTIONS[status], "content": _PROBLEM_CONTENT} for status in statuses}
