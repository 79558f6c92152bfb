"""Listening: with TLS, or on loopback alone."""

from __future__ import annotations

import ipaddress
from typing import Any

import uvicorn

from margrave.matching import Matcher
from margrave.serving.app import make_app
from margrave.serving.connections import BoundedProtocol
from margrave.serving.settings import ServiceSettings


def check_listening(settings: ServiceSettings) -> None:
    """Refuse to send faces and names over a network in plain text.

    Raises:
        ValueError: an address beyond loopback without TLS; half of TLS's files, or ones missing.
    """
    files = {"certificate": settings.tls_certificate, "key": settings.tls_key}
    given = {name: path for name, path in files.items() if path is not None}
    if len(given) == 1:
        missing = "key" if "certificate" in given else "certificate"
        raise ValueError(f"TLS needs both files; give --tls-{missing} too")
    for name, path in given.items():
        if not path.is_file():
            raise ValueError(f"--tls-{name} {path}: no such file")
    if not given and not settings.insecure and not is_loopback(settings.host):
        raise ValueError(
            f"--host {settings.host} would send faces and names in plain text over the network; "
            "give --tls-certificate and --tls-key, or --insecure if something in front has TLS"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    matcher: Matcher,
    settings: ServiceSettings,
    *,
    detector: str | None = None,
    aligned: bool = False,
    check_alignment: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT; what was begun is finished first.

    Args:
        matcher: the model, and the gallery if there is one.
        settings: of the service.
        detector: YuNet's file; MTCNN, or the model's own, by default.
        aligned: images are aligned crops.
        check_alignment: refuse crops that are not.

    Raises:
        ValueError: an address beyond loopback without TLS; what `make_app` refuses.
    """
    check_listening(settings)
    app = make_app(
        matcher, settings, detector=detector, aligned=aligned, check_alignment=check_alignment
    )
    uvicorn.run(app, **server_options(settings))


def server_options(settings: ServiceSettings) -> dict[str, Any]:
    """How uvicorn is run.

    Args:
        settings: of the service.
    """
    return {
        "host": settings.host,
        "port": settings.port,
        "ssl_certfile": settings.tls_certificate,
        "ssl_keyfile": settings.tls_key,
        # The gate logs; paths, which hold names, are not.
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "http": BoundedProtocol,
        # Nothing here speaks WebSocket.
        "ws": "none",
        "timeout_graceful_shutdown": settings.shutdown_seconds,
        "timeout_keep_alive": 5,
        "h11_max_incomplete_event_size": 32768,
    }
