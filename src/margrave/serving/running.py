"""Runs the service; refuses to listen on a network without TLS."""

from __future__ import annotations

import ipaddress
import json
import logging
import time

import uvicorn
from starlette.types import ASGIApp

from margrave.matching import Matcher
from margrave.serving.app import make_app
from margrave.serving.connections import BACKLOG, BoundedListener, BoundedProtocol
from margrave.serving.gate import log_fields_of_error
from margrave.serving.settings import ServiceSettings


def check_listening(settings: ServiceSettings) -> None:
    """Check that the service will not send faces and names over a network in plain text.

    Raises:
        ValueError: the address is not loopback and neither TLS nor `insecure` is set, only one of
            the two TLS files is given, or a TLS file does not exist.
    """
    paths = {"certificate": settings.tls_certificate, "key": settings.tls_key}
    tls_files = {name: path for name, path in paths.items() if path is not None}
    if len(tls_files) == 1:
        missing = "key" if "certificate" in tls_files else "certificate"
        raise ValueError(f"TLS needs a certificate and a key; give --tls-{missing} too")
    for name, path in tls_files.items():
        if not path.is_file():
            raise ValueError(f"--tls-{name} {path}: no such file; check the path")
    if not tls_files and not settings.insecure and not is_loopback(settings.host):
        raise ValueError(
            f"--host {settings.host} would send faces and names in plain text over the network; "
            "give --tls-certificate and --tls-key, or --insecure behind a TLS proxy"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; False for host names except ``localhost``.

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
    """Serve until SIGTERM or SIGINT, then finish the running requests.

    Args:
        matcher: the model, and the gallery if there is one.
        settings: the service's settings.
        detector: path of a YuNet file; by default MTCNN. Ignored if the model uses dlib's
            alignment.
        aligned: whether images are already aligned crops.
        check_alignment: if `aligned`, whether to reject crops without an aligned face.

    Raises:
        ValueError: see `check_listening` and `make_app`.
    """
    check_listening(settings)
    app = make_app(
        matcher, settings, detector=detector, aligned=aligned, check_alignment=check_alignment
    )
    run_application(app, settings)


def run_application(app: ASGIApp, settings: ServiceSettings) -> None:
    """Run an application until SIGTERM or SIGINT.

    Raises:
        ValueError: the service cannot listen at the address.
    """
    try:
        listener = BoundedListener.listen_at(settings.host, settings.port)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {settings.host}:{settings.port} ({error.strerror}); choose another "
            "--host or --port"
        ) from None
    config = uvicorn.Config(
        app,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        # uvicorn would log paths, which contain names; `Gate` logs requests without them.
        access_log=False,
        log_config=LOG_CONFIG,
        server_header=False,
        http=BoundedProtocol,
        loop="margrave.serving.connections:ServiceLoop",
        # No route uses WebSocket.
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        # Seconds after which an idle connection is closed.
        timeout_keep_alive=5,
        # Maximum size of a request's first line and headers, in bytes.
        h11_max_incomplete_event_size=32768,
    )
    uvicorn.Server(config).run(sockets=[listener])


class JsonFormatter(logging.Formatter):
    """Formats what libraries log as JSON, without values, which may contain names."""

    def format(self, record: logging.LogRecord) -> str:
        """One line: time, logger, the first line of the message's template, and where it failed."""
        # asyncio writes details below the first line.
        template = (str(record.msg).splitlines() or [""])[0][:MAX_TEMPLATE_LENGTH]
        error = record.exc_info[1] if record.exc_info else None
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "logger": record.name,
            "message": template,
            **(log_fields_of_error(error) if isinstance(error, Exception) else {}),
        }
        return json.dumps(line)


MAX_TEMPLATE_LENGTH = 200
"""Maximum number of characters of a library's message that are logged."""
LOG_CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonFormatter}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {
        name: {"handlers": ["stderr"], "level": "ERROR", "propagate": False}
        # These log faults of clients as warnings, which any client could cause in masses.
        for name in ("uvicorn", "uvicorn.error", "asyncio", "python_multipart")
    },
}
"""Configuration of the libraries' loggers, for `logging.config.dictConfig`."""
