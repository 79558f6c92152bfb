"""A service under test: in this process, or in one of its own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import httpx2 as httpx
from fake_matching import matcher, person
from fastapi.testclient import TestClient

from margrave.faces import AlignedFace
from margrave.matching import Matcher
from margrave.serving import SCOPES, KeyFile, ServiceSettings, make_app


class InThisProcess:
    """Finds faces without other processes."""

    def __init__(self, found_by: Matcher, seconds: float = 0.0) -> None:
        self.matcher, self.seconds = found_by, seconds

    async def find(self, content: bytes, which: Any, name: str) -> list[AlignedFace]:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return self.matcher.find(content, which=which, name=name)

    def warm(self) -> None: ...

    def close(self) -> None: ...


class Service:
    """A service under test."""

    def __init__(self, folder: Path, gallery: bool = True, **settings: Any) -> None:
        self.matcher = matcher(gallery=gallery)
        self.keys, self.audit = KeyFile(folder / "keys.json"), folder / "audit.jsonl"
        self.workers = InThisProcess(self.matcher)
        self.log: list[str] = []
        self.settings = ServiceSettings(keys=self.keys.path, audit=self.audit, **settings)
        self.app = make_app(
            self.matcher, self.settings, workers=self.workers, write_log=self.log.append
        )

    def header(self, *scopes: str) -> dict[str, str]:
        _, token = self.keys.new("test", scopes or tuple(SCOPES))
        return {"Authorization": f"Bearer {token}"}


class Server:
    """A service in a process of its own."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder = folder
        _, self.token = KeyFile(folder / "keys.json").new("test", tuple(SCOPES))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        scheme = "https" if (folder / "certificate.pem").exists() else "http"
        self.address = f"{scheme}://127.0.0.1:{self.port}"
        script = Path(__file__).parent / "serving" / "server.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(self.port), str(seconds)],
            stderr=open(folder / "log", "w"),  # noqa: SIM115
        )
        for _ in range(300):
            try:
                if httpx.get(f"{self.address}/ready", verify=False).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise AssertionError((folder / "log").read_text())

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def png(seed: int, variation: int = 0) -> bytes:
    image = cv2.cvtColor(person(seed, variation), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()


def verify(client: TestClient, first: bytes, second: bytes, **fields: Any) -> Any:
    return client.post("/v1/verify", files={"first": first, "second": second}, data=fields)


def enroll(client: TestClient, name: str, *images: bytes, **fields: Any) -> Any:
    files = [("images", image) for image in images]
    return client.post("/v1/people", files=files, data={"name": name, **fields})
