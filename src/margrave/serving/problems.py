"""Errors of the API as JSON: ``error`` is a message for humans, ``reason`` a code for programs."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from margrave.gallery import GalleryError
from margrave.matching import Refused
from margrave.serving.audit import TrailUnavailable
from margrave.serving.gate import internal_error, log_fields_of_error
from margrave.serving.request_checks import NOT_FOUND

REASONS = {400: "malformed", 404: "not_found", 405: "not_allowed", 413: "too_large", 503: "later"}
"""HTTP status of an `HTTPException` -> ``reason``; other statuses get ``refused``."""

MESSAGES_OF_FRAMEWORK = {
    "Content Too Large": "the request is too large; send fewer or smaller images",
    "Not Found": NOT_FOUND.message,
    "Method Not Allowed": "this address does not support this method; see the Allow header",
}
"""The framework's message -> the service's message."""


def add_problems(app: FastAPI) -> None:
    """Register exception handlers that return every error in the form of `problem`.

    Args:
        app: the application.
    """

    @app.exception_handler(Refused)
    async def handle_refused(request: Request, error: Refused) -> JSONResponse:
        del request
        status = 409 if error.reason == "already_enrolled" else 422
        return problem(status, str(error), error.reason)

    @app.exception_handler(RequestValidationError)
    async def handle_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        del request
        # The first part of a location says where the parameter was sent, such as ``query``. At most
        # five faults are listed.
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'][1:])}: {fault['msg']}"
            for fault in error.errors()[:5]
        ]
        return problem(422, "; ".join(faults), "invalid")

    @app.exception_handler(HTTPException)
    async def handle_http(request: Request, error: HTTPException) -> JSONResponse:
        reason = REASONS.get(error.status_code, "refused")
        headers = error.headers
        if error.status_code == 405:
            headers = {"allow": ", ".join(_allowed_methods(app, request))}
        message = MESSAGES_OF_FRAMEWORK.get(str(error.detail), str(error.detail))
        return problem(error.status_code, message, reason, headers)

    @app.exception_handler(GalleryError)
    async def handle_gallery(request: Request, error: GalleryError) -> JSONResponse:
        # The error's own message may name other people, so the client gets a general one.
        message = "the gallery cannot be used now; try again later"
        return _failure_response(request, error, message, "later")

    @app.exception_handler(TrailUnavailable)
    async def handle_no_audit(request: Request, error: TrailUnavailable) -> JSONResponse:
        return _failure_response(request, error, str(error), "no_audit")

    @app.exception_handler(ValueError)
    async def handle_value(request: Request, error: ValueError) -> JSONResponse:
        del request
        return problem(422, str(error), "invalid")

    @app.exception_handler(Exception)
    async def handle_unexpected(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again after this response, so `Gate` logs it.
        del error
        return problem(500, internal_error(request.scope["state"]["request_id"]), "internal")


def problem(
    status: int, message: str, reason: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The JSON response for an error."""
    return JSONResponse({"error": message, "reason": reason}, status, headers=headers)


def _failure_response(
    request: Request, error: Exception, message: str, reason: str
) -> JSONResponse:
    """The response for a temporary failure of the service; also logs the error."""
    request.scope["state"]["logged_error"] = log_fields_of_error(error)
    return problem(503, message, reason, {"retry-after": "5"})


def _allowed_methods(app: FastAPI, request: Request) -> list[str]:
    """The methods of all routes that match a request's path.

    Starlette's router would list only the methods of the first matching route.
    """
    methods: set[str] = set()
    for route in app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)
