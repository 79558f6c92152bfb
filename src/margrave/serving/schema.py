"""Adds API keys, scopes and errors to the OpenAPI schema that FastAPI derives from the routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from margrave.serving.answers import Problem

SCHEME = "api_key"
"""Name of the security scheme in the OpenAPI schema."""


def describe_access(app: FastAPI, scope_of: Callable[[str, str], str | None]) -> None:
    """Declare the API key in the OpenAPI schema, and the scope that each operation needs.

    Args:
        app: the application with all its routes.
        scope_of: (method, path) -> the scope that a request's API key needs: None if the request
            needs no key, empty if any key will do. `Gate` must use the same function.
    """
    default_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = default_openapi()
        schema.setdefault("components", {})["securitySchemes"] = {
            SCHEME: {
                "type": "http",
                "scheme": "bearer",
                "description": "A key from `margrave keys new`; each operation lists its scope.",
            }
        }
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                scope = scope_of(method.upper(), path)
                scopes = [] if not scope else [scope]
                operation["security"] = [] if scope is None else [{SCHEME: scopes}]
                for status, response in operation["responses"].items():
                    # If a route returns text/plain, FastAPI declares its errors as text/plain too,
                    # but they are JSON.
                    if status >= "400" and "text/plain" in response["content"]:
                        content = response["content"]
                        content["application/json"] = content.pop("text/plain")
        return schema

    app.openapi = openapi


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for FastAPI's ``responses``: status -> model, description."""
    descriptions = {
        400: "The request is malformed.",
        401: "No valid API key.",
        403: "The key lacks the scope.",
        404: "Nobody is enrolled under that name, or the service has no gallery.",
        408: "The request took too long.",
        409: "The name is taken, or the face is enrolled already.",
        413: "The request is too large.",
        415: "The body is not multipart/form-data in UTF-8.",
        422: "An image cannot be used, or a parameter is invalid; see `reason`.",
        429: "Too many requests; see Retry-After.",
        500: "The service failed; see the request with this `X-Request-Id` in the service's log.",
        503: "Overloaded, or the gallery or audit trail is unavailable; see Retry-After.",
    }
    return {status: {"model": Problem, "description": descriptions[status]} for status in statuses}
