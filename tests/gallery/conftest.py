"""A real Milvus server for the tests, where PyPI's ``milvus`` is installed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

REQUIRED = bool(os.environ.get("MARGRAVE_REQUIRE_SHARED"))


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a server that all workers of a test run share; the last one stops it."""
    missing = [name for name in ("pymilvus", "milvus") if find_spec(name) is None]
    if missing:
        if REQUIRED and sys.platform == "linux":
            pytest.fail(f"{', '.join(missing)} must be installed here: pip install -e '.[dev]'")
        pytest.skip(f"{', '.join(missing)} not installed")
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    state = folder / "milvus.json"
    with open(folder / "milvus.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = json.loads(state.read_text()) if state.exists() else _started(folder)
        server["users"] += 1
        state.write_text(json.dumps(server))
    try:
        yield f"127.0.0.1:{server['port']}"
    finally:
        with open(folder / "milvus.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            server = json.loads(state.read_text())
            server["users"] -= 1
            if server["users"]:
                state.write_text(json.dumps(server))
            else:
                state.unlink()
                os.kill(server["pid"], signal.SIGKILL)


def _started(folder: Path) -> dict[str, int]:
    """Process and port of a new server, and nobody who uses it."""
    from milvus import MilvusServer, MilvusServerConfig

    folder = folder / "milvus"
    folder.mkdir()
    config = MilvusServerConfig(data_dir=str(folder))
    # Its configuration store would take etcd's own ports, which another server may have.
    peers, clients = (f"http://127.0.0.1:{port}" for port in _free_ports(2))
    (folder / "etcd.yaml").write_text(
        f"name: default\ndata-dir: {folder}/data/etcd.data\nlog-outputs: [{folder}/etcd.log]\n"
        f"listen-peer-urls: {peers}\ninitial-advertise-peer-urls: {peers}\n"
        f"listen-client-urls: {clients}\nadvertise-client-urls: {clients}\n"
        f"initial-cluster: default={peers}\n"
    )
    changes = {
        "\netcd:\n": f"\netcd:\n  config:\n    path: {folder}/etcd.yaml\n",
        # Milliseconds: reads of what was written wait for the next tick.
        "timeTickInterval: 200": "timeTickInterval: 20",
        "checkInterval: 1000": "checkInterval: 100",
        "distPullInterval: 500": "distPullInterval: 50",
    }
    for old, new in changes.items():
        assert old in config.template_text
        config.template_text = config.template_text.replace(old, new)
    server = MilvusServer(config, wait_for_started=False)
    # It would stop with this object, which other workers may still need.
    _KEPT.append(server)
    here = Path.cwd()
    try:
        server.start()
    finally:
        os.chdir(here)
    process = server.server_proc
    assert process is not None
    deadline = time.monotonic() + 120
    while not _is_healthy(server.webservice_port):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the Milvus server did not start; see {folder}/logs")
        time.sleep(0.2)
    return {"pid": process.pid, "port": server.listen_port, "users": 0}


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return b"OK" in answer.read()
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


_KEPT: list[object] = []
