"""What OpenAPI says beyond the routes' own types: API keys, scopes and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from margrave.serving.answers import Problem

SCHEME = "api_key"


def describe_access(app: FastAPI, scope_of: Callable[[str, str], str | None]) -> None:
    """Declare the API key, and with each operation the scope that it needs.

    Args:
        app: with all its routes.
        scope_of: the scope that a method and a path need, as the gate has it.
    """
    without_access = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = without_access()
        schema.setdefault("components", {})["securitySchemes"] = {
            SCHEME: {
                "type": "http",
                "scheme": "bearer",
                "description": "A key of `margrave keys new`; operations list the scopes it needs.",
            }
        }
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                scope = scope_of(method.upper(), path)
                needed = [] if not scope else [scope]
                operation["security"] = [] if scope is None else [{SCHEME: needed}]
                for status, response in operation["responses"].items():
                    # FastAPI takes errors for texts where the route answers texts.
                    if status >= "400" and "text/plain" in response["content"]:
                        content = response["content"]
                        content["application/json"] = content.pop("text/plain")
        return schema

    app.openapi = openapi


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that a route may answer with, for OpenAPI."""
    texts = {
        400: "The request is malformed.",
        401: "No valid API key.",
        403: "The key lacks the scope.",
        404: "Nobody of that name, or no gallery.",
        408: "The request took too long.",
        409: "The name is taken, or the face is enrolled already.",
        413: "The request is too large.",
        422: "An image that cannot be judged, or a wrong parameter; `reason` says which.",
        429: "Too many requests; see Retry-After.",
        500: "The service failed; its log has more at `X-Request-Id`.",
        503: "Overloaded, or the gallery or the audit trail is out of reach; see Retry-After.",
    }
    return {status: {"model": Problem, "description": texts[status]} for status in statuses}
