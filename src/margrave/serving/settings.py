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
    """Settings of the service; sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    """Address to listen on; any address but loopback needs TLS or `insecure`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8443
    """Port to listen on; 0 chooses a free one."""
    keys: Path = Path("keys.json")
    """File of API keys; see `margrave keys`."""
    audit: Path = Path("audit.jsonl")
    """File of the audit trail; the key for its pseudonyms is in a file beside it."""
    tls_certificate: Path | None = None
    """TLS certificate, a PEM file."""
    tls_key: Path | None = None
    """TLS private key, a PEM file."""
    insecure: bool = False
    """Allow any address without TLS, for example behind a TLS proxy."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Number of worker processes, which decode images and detect faces."""
    max_request_bytes: Annotated[int, Field(ge=1000)] = 24_000_000
    """Maximum size of a request in bytes; a photo from a phone has up to 12 MB."""
    max_images_per_request: Annotated[int, Field(ge=1)] = 8
    """Maximum number of images in a request."""
    max_concurrent: Annotated[int, Field(ge=1)] = 32
    """Maximum number of concurrent requests, running or waiting; further requests get 503. One key
    may use three quarters of them."""
    rate: Annotated[str, AfterValidator(_checked_rate)] = "600/minute"
    """Maximum request rate per key, such as 600/minute; further requests get 429."""
    face_seconds: Annotated[float, Field(gt=0)] = 15.0
    """Maximum seconds to decode an image and detect its faces; a slower worker is killed."""
    worker_memory: Annotated[int, Field(ge=500_000_000)] = 3_000_000_000
    """Additional address space in bytes that a worker process may use after it has started."""
    request_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Maximum time of a request in seconds, including its body; slower requests get 408."""
    batch_seconds: Annotated[float, Field(gt=0)] = 0.1
    """Time in seconds that a batch of embeddings should take at most; limits the batch size."""
    max_batch_size: Annotated[int, Field(ge=1)] = 64
    """Maximum number of faces in a batch."""
    shutdown_seconds: Annotated[int, Field(ge=1)] = 30
    """Maximum time in seconds to finish running requests after SIGTERM."""
