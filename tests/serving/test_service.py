"""A real server: its schema is true, its refusals arrive, and it finishes what it began."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fake_service import Server, png

from margrave.gallery import open_gallery
from margrave.serving import ServiceSettings, verify_trail
from margrave.serving.running import check_listening, run_application

pytestmark = pytest.mark.service
REQUIRED = bool(os.environ.get("MARGRAVE_REQUIRE_SHARED"))


def test_the_schema_is_true(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start()
    command = Path(sys.executable).with_name("schemathesis")
    if not command.exists():
        assert not REQUIRED, "schemathesis is required here"
        pytest.skip("schemathesis is not installed")
    done = subprocess.run(
        [
            str(command),
            "run",
            f"{server.address}/openapi.json",
            "-H",
            f"Authorization: Bearer {server.token}",
            "--max-examples=20",
            "--seed=1",
            "--generation-database=none",
            # What is no image is refused, which a schema cannot say.
            "--exclude-checks=positive_data_acceptance",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-6000:]


def test_what_was_begun_is_finished(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start(0.7)
    answers: list[Any] = []

    def enroll() -> None:
        answer = httpx.post(
            f"{server.address}/v1/people",
            headers=server.header,
            files={"images": png(1)},
            data={"name": "Ann"},
            timeout=20,
        )
        answers.append(answer.status_code)

    thread = threading.Thread(target=enroll)
    thread.start()
    time.sleep(0.35)
    server.process.send_signal(signal.SIGTERM)
    thread.join()
    assert answers == [201]
    server.process.wait(20)
    with open_gallery(str(tmp_path / "people.gallery")) as gallery:
        assert [each.name for each in gallery.people()] == ["Ann"]
    assert verify_trail(tmp_path / "audit.jsonl") == 2


def test_refusals_reach_clients_that_are_still_sending(start: Callable[..., Server]) -> None:
    server = start()
    size = 20_000_000
    expected = {"Bearer mgv_a_b": 401, f"Bearer {server.token}": 413}
    for authorization, status in expected.items():
        announced = size if status == 401 else 2 * size
        head = (
            f"POST /v1/verify HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n"
            f"Content-Type: multipart/form-data; boundary=x\r\n"
            f"Authorization: {authorization}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(head.encode())
            time.sleep(0.3)
            for _ in range(announced // 1_000_000):
                connection.sendall(bytes(1_000_000))
            answer = b""
            while received := connection.recv(65536):
                answer += received
        assert answer.startswith(b"HTTP/1.1 %d " % status) and answer.endswith(b"}")


def test_connections_without_a_request_are_ended(start: Callable[..., Server]) -> None:
    server = start()
    opened = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(80)]
    for each in opened[:30]:
        each.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
    # As many as there may be, of 80; a whole request before them is not in the way.
    time.sleep(1)
    for each in opened[:30]:
        with suppress(OSError):
            each.sendall(b"X-Slow: 1\r\n")
    time.sleep(1.5)
    assert httpx.get(f"{server.address}/health").status_code == 200
    for each in opened:
        with suppress(ConnectionResetError):
            assert each.recv(100) == b""
    with httpx.Client(base_url=server.address) as client:
        for _ in range(3):
            assert client.get("/health").status_code == 200
            time.sleep(1)


def test_handshakes_that_do_not_begin_are_ended(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    write_certificate(tmp_path)
    server = start()
    opened = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(150)]
    time.sleep(0.5)
    # More than there may be are closed at once; the others have two seconds.
    assert sum(is_closed(each) for each in opened) >= 150 - 60
    time.sleep(2.5)
    assert httpx.get(f"{server.address}/health", verify=False).status_code == 200
    assert all(is_closed(each) for each in opened)
    assert (tmp_path / "log").read_text().count("\n") < 10


def test_clients_that_do_not_read_are_ended(start: Callable[..., Server]) -> None:
    server = start()
    opened = []
    for _ in range(70):
        each = socket.socket()
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        each.connect(("127.0.0.1", server.port))
        each.setblocking(False)
        with suppress(BlockingIOError, ConnectionResetError, BrokenPipeError):
            each.send(b"GET /page.js HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
        opened.append(each)
    # The system's buffers take some megabytes of each before the service has to wait.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            assert httpx.get(f"{server.address}/health").status_code == 200
            return
        time.sleep(0.5)
    raise AssertionError("the connections were not ended")


def test_malformed_requests_are_answered_and_logged_as_json(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start()
    for request in (b"GARBAGE\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(request)
            answer = b""
            while received := connection.recv(65536):
                answer += received
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "malformed"
    part = {"Range": "bytes=0-9", "Upgrade": "websocket", "Connection": "Upgrade"}
    for headers in ({"Range": "x"}, {"Range": "bytes=5-2"}, part):
        answer = httpx.get(f"{server.address}/page.js", headers=headers)
        assert answer.status_code == 200 and len(answer.content) > 1000
    form = {"Content-Type": "multipart/form-data; boundary=b", **server.header}
    answer = httpx.post(f"{server.address}/v1/verify", content=b"--a--", headers=form)
    assert answer.status_code in (400, 422) and answer.json()["reason"]
    for line in (tmp_path / "log").read_text().splitlines():
        json.loads(line)


def test_what_takes_too_long_is_told_that_the_service_stops(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start(30)
    answers: list[httpx.Response] = []

    def verify() -> None:
        files = {"first": png(1), "second": png(1, 1)}
        address = f"{server.address}/v1/verify"
        answers.append(httpx.post(address, headers=server.header, files=files, timeout=20))

    thread = threading.Thread(target=verify)
    thread.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    thread.join()
    assert (answers[0].status_code, answers[0].json()["reason"]) == (503, "later")
    server.process.wait(20)
    for line in (tmp_path / "log").read_text().splitlines():
        json.loads(line)


def test_an_address_in_use_is_named(start: Callable[..., Server]) -> None:
    server = start()
    settings = ServiceSettings(port=server.port)
    with pytest.raises(ValueError, match=rf"cannot listen at 127.0.0.1:{server.port} .*--port"):
        run_application(lambda *_: None, settings)  # pyright: ignore[reportArgumentType]


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def write_certificate(folder: Path) -> None:
    """Write a certificate of localhost, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    form, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls_key.pem").write_bytes(key.private_bytes(pem, form, encryption))


def test_plain_text_stays_on_this_machine(tmp_path: Path) -> None:
    check_listening(ServiceSettings())
    check_listening(ServiceSettings(host="0.0.0.0", insecure=True))
    with pytest.raises(ValueError, match="in plain text over the network"):
        check_listening(ServiceSettings(host="0.0.0.0"))
    with pytest.raises(ValueError, match="give --tls-key too"):
        check_listening(ServiceSettings(tls_certificate=tmp_path / "c.pem"))
    with pytest.raises(ValueError, match="no such file"):
        check_listening(
            ServiceSettings(tls_certificate=tmp_path / "c.pem", tls_key=tmp_path / "k.pem")
        )
