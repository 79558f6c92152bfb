"""Settings of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import limits
from pydantic import AfterValidator, Field

from margrave.settings import Settings


def _checked_rate(rate: str) -> str:
    try:
        limits.parse(rate)
    except ValueError:
        raise ValueError(f"{rate!r} is not a rate; give one such as 600/minute") from None
    return rate


class ServiceSettings(Settings):
    """How the service is run; sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    """Where it listens; beyond loopback only with TLS, or if told so."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8443
    """0 takes a free one."""
    keys: Path = Path("keys.json")
    """File of API keys, see `margrave keys`."""
    audit: Path = Path("audit.jsonl")
    """File of the audit trail; its key lies beside it."""
    tls_certificate: Path | None = None
    """PEM file."""
    tls_key: Path | None = None
    """PEM file."""
    insecure: bool = False
    """Listen beyond loopback without TLS, because something in front of it has TLS."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that decode images and find faces."""
    most_body: Annotated[int, Field(ge=1000)] = 24_000_000
    """The largest request; photos of telephones have up to 12 MB."""
    most_images: Annotated[int, Field(ge=1)] = 8
    """In one request."""
    most_waiting: Annotated[int, Field(ge=1)] = 32
    """Requests that are worked on or wait; further ones are refused with 503 at once."""
    rate: Annotated[str, AfterValidator(_checked_rate)] = "600/minute"
    """Requests of each key, in the notation of the limits library; further ones get 429."""
    face_seconds: Annotated[float, Field(gt=0)] = 15.0
    """For decoding an image and finding its faces; then the process is killed."""
    worker_memory: Annotated[int, Field(ge=500_000_000)] = 3_000_000_000
    """Address space of such a process beyond what it has when it is warm."""
    request_seconds: Annotated[float, Field(gt=0)] = 60.0
    """For a whole request, its body included; then it is ended with 408."""
    batch_seconds: Annotated[float, Field(gt=0)] = 0.1
    """The time that a batch of embeddings may take."""
    most_batch: Annotated[int, Field(ge=1)] = 64
    """Faces in a batch."""
    shutdown_seconds: Annotated[int, Field(ge=1)] = 30
    """For finishing what was begun, after SIGTERM."""
