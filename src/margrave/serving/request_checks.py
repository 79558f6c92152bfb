"""Checks a request's address and headers, before its body is read."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.types import Scope


class Rejection(NamedTuple):
    """An error response.

    Attributes:
        status: the HTTP status.
        reason: a code for programs.
        message: a sentence for humans.
        retry_seconds: seconds until the client may retry; None sends no Retry-After header.
    """

    status: int
    reason: str
    message: str
    retry_seconds: int | None = None


NOT_FOUND = Rejection(404, "not_found", "there is nothing at this address; see /openapi.json")


def check_address(scope: Scope) -> Rejection | None:
    """Reject an address that is not valid UTF-8 or contains control characters.

    A framework may match such an address although it differs from the route's: regular expressions
    ignore a final line break, and invalid bytes are replaced.
    """
    try:
        path = unquote_to_bytes(scope.get("raw_path") or scope["path"].encode()).decode()
    except UnicodeDecodeError:
        return NOT_FOUND
    return NOT_FOUND if any(ord(character) < 32 for character in path) else None


def check_size(scope: Scope, max_bytes: int) -> Rejection | None:
    """Reject a body that is declared to be too large.

    A chunked body has no declared length; FastAPI counts its bytes while reading.
    """
    length = Headers(scope=scope).get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return Rejection(400, "malformed", "the header Content-Length must be a whole number")
    # Python refuses to convert thousands of digits; the first 20 suffice to exceed every limit.
    if int(length[:20]) > max_bytes:
        message = f"a request may have at most {max_bytes} bytes; send fewer or smaller images"
        return Rejection(413, "too_large", message)
    return None


def check_media_type(scope: Scope) -> Rejection | None:
    """Reject a POST whose body is not multipart/form-data in UTF-8.

    The parser of other forms counts no empty fields, and Python remembers each unknown charset.
    """
    if scope["method"] != "POST":
        return None
    kind, parameters = parse_options_header(Headers(scope=scope).get("content-type", ""))
    charset = parameters.get(b"charset", b"utf-8").lower()
    if kind.lower() != b"multipart/form-data" or charset not in (b"utf-8", b"utf8"):
        message = "send the images and fields as multipart/form-data in UTF-8"
        return Rejection(415, "not_multipart", message)
    return None
