"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_service import Server, Service
from fastapi.testclient import TestClient


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(service.app, headers=service.header()) as client:
        yield client


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(seconds: float = 0.0) -> Server:
        servers.append(Server(tmp_path, seconds))
        return servers[-1]

    yield make
    for server in servers:
        server.process.kill()
        server.process.wait()
