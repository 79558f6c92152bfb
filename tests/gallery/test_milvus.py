"""Galleries on a Milvus server: addresses, refusals, interruptions, a server that goes away."""

from __future__ import annotations

import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec

import numpy as np
import pytest

from margrave.gallery import (
    Gallery,
    GalleryCard,
    MemoryGallery,
    NoGallery,
    Person,
    PersonRecord,
    create_gallery,
    milvus_crops,
    milvus_rows,
    milvus_server,
    open_gallery,
)
from margrave.gallery.milvus import MilvusGallery, MilvusStore
from margrave.gallery.milvus_rows import create_people_collection, key_of
from margrave.gallery.milvus_server import MilvusAddress, MilvusServer

CARD = GalleryCard(weights="ab12", dimension=8)
WITH_CROPS = GalleryCard(weights="ab12", dimension=8, keep_images=True)

needs_client = pytest.mark.skipif(find_spec("pymilvus") is None, reason="pymilvus not installed")


def _rows(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8))


pytestmark = pytest.mark.service


@pytest.fixture
def address(milvus_server: str) -> str:
    return f"milvus://{milvus_server}/test_{uuid.uuid4().hex}"


@pytest.fixture
def gallery(address: str) -> Iterator[MilvusGallery]:
    made = create_gallery(address, WITH_CROPS)
    assert isinstance(made, MilvusGallery)
    with made:
        yield made


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("milvus://", "not the address of a gallery; write milvus://host:port/name"),
        ("milvus://host:19530", "not the address"),
        ("milvus://host/name?x=1", "not the address"),
        ("milvus://host:99999/name", "not a valid address"),
        ("milvus://host:port/name", "not a valid address"),
        ("milvus://host/1name", "not begin with a digit"),
        ("milvus://host/na-me", "letters, digits and underscores"),
        ("milvus://host/a/b", "letters, digits and underscores"),
        (f"milvus://host/{'a' * 201}", "at most 200"),
        ("milvus://root:secret@host/name", "MARGRAVE_MILVUS_TOKEN"),
    ],
)
def test_addresses_that_are_none(address: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        open_gallery(address)
    assert "secret" not in str(caught.value)


def test_addresses_are_written_in_one_way() -> None:
    assert str(MilvusAddress.parse("milvus://[::1]/faces")) == "milvus://[::1]:19530/faces"
    assert MilvusAddress.parse("milvus://host:1/x").server == "host:1"


def test_what_it_cannot_do() -> None:
    for method in (lambda: create_gallery("milvus://host/x", CARD, key="secret"),
                   lambda: open_gallery("milvus://host/x", key="secret")):  # fmt: skip
        with pytest.raises(ValueError, match="so they cannot be encrypted") as caught:
            method()
        assert "secret" not in str(caught.value)
    half = GalleryCard(weights="ab12", dimension=8, half=True)
    with pytest.raises(ValueError, match="store float32; use a card with half=False"):
        create_gallery("milvus://host/x", half)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ValueError, match=r"milvus://host:19530/x needs pymilvus.*margrave\[milvus"):
        open_gallery("milvus://host/x")


@needs_client
def test_no_server_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(ValueError, match=rf"no Milvus server answers at 127.0.0.1:{port}"):
        MilvusStore(timeout=2).open(f"milvus://127.0.0.1:{port}/x", None)
    assert time.monotonic() - begun < 8


@needs_client
def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(ValueError, match="no Milvus server answers"):
            MilvusStore(timeout=2).create(f"milvus://127.0.0.1:{port}/x", CARD, None)
        assert time.monotonic() - begun < 8


def test_nothing_there_and_something_else_there(address: str) -> None:
    with pytest.raises(NoGallery, match="no such gallery; create one with margrave enroll"):
        open_gallery(address)
    server = MilvusServer(MilvusAddress.parse(address))
    kinds, field = server.pymilvus.DataType, server.pymilvus.FieldSchema
    fields = [
        field("id", kinds.INT64, is_primary=True),
        field("vector", kinds.FLOAT_VECTOR, dim=8),
    ]
    name = server.address.collection
    server.create(fields, "L2", "somebody's own", name)
    server.create(fields, "L2", "somebody's own", f"{name}b_crops")
    with pytest.raises(ValueError, match="this collection is not a Margrave gallery"):
        open_gallery(address)
    with pytest.raises(ValueError, match="this collection exists already"):
        create_gallery(address, CARD)
    with pytest.raises(ValueError, match="exists already and holds something else"):
        create_gallery(f"{address}b", WITH_CROPS)
    newer = CARD.to_json().replace('"format_version": 1', '"format_version": 2')
    server.create(fields, "IP", f"{milvus_rows.MARK} {newer}", f"{name}c")
    with pytest.raises(ValueError, match="format_version 2, but this version of Margrave reads 1"):
        open_gallery(f"{address}c")
    other = GalleryCard(weights="ab12", dimension=9).to_json()
    server.create(fields, "IP", f"{milvus_rows.MARK} {other}", f"{name}d")
    with pytest.raises(ValueError, match="vectors have dimension 8, but its card says 9"):
        open_gallery(f"{address}d")
    server.close()


def test_many_people_are_searched_exactly_and_listed_whole(
    gallery: MilvusGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = MemoryGallery(WITH_CROPS)
    vectors = _rows(1, 3000)
    rows = []
    for number, vector in enumerate(vectors):
        person = truth.add(f"person {number:04}", vector[None])
        length = float(np.linalg.norm(vector))
        rows.append({"key": key_of(person.name), "name": person.name, "images": 1,
                     "vector": (vector / length).astype(np.float32).tolist(), "length": length,
                     "enrolled": person.enrolled, "crops": "[]"})  # fmt: skip
    gallery._server.call("upsert", gallery._collection, rows)
    queries = _rows(2, 100)
    for ours, theirs in zip(gallery.search(queries), truth.search(queries), strict=True):
        assert [one.name for one in ours] == [one.name for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.similarity == pytest.approx(other.similarity, abs=1e-5)
    assert len(gallery.search(queries[:1], 5000)[0]) == 3000
    with pytest.raises(ValueError, match="top_k = 20000, must be at most 16384"):
        gallery.search(queries, 20_000)
    # In several pages, some of which are too full.
    monkeypatch.setattr(milvus_server, "MEAN_PAGE_ROWS", 250)
    monkeypatch.setattr(milvus_server, "MAX_PAGE_ROWS", 190)
    names = [person.name for person in gallery.people()]
    assert names == [person.name for person in truth.people()]
    assert len(gallery) == 3000


def test_the_equally_similar_come_by_name(gallery: MilvusGallery) -> None:
    twins = [f"twin {number:03}" for number in range(200)]
    people = [
        PersonRecord(person=Person(name=name, images=1, enrolled="x"), vector=_rows(1)[0])
        for name in reversed(twins)
    ]
    assert gallery.restore(people) == 200
    # More are equal than are asked for at first.
    assert [one.name for one in gallery.search(_rows(1), 3)[0]] == twins[:3]
    assert [one.name for one in gallery.search(_rows(1), 150)[0]] == twins[:150]


def test_an_interrupted_addition_leaves_nobody_and_no_crops(
    gallery: MilvusGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.add("Ann", _rows(1), crops=[b"first"])
    call = gallery._server.call

    def broken(method: str, collection: str, *arguments: object, **options: object) -> object:
        if method == "upsert" and collection == gallery._collection:
            raise ValueError("interrupted")
        return call(method, collection, *arguments, **options)

    monkeypatch.setattr(gallery._server, "call", broken)
    for name in ("Ann", "Bob"):
        with pytest.raises(ValueError, match="interrupted"):
            gallery.add(name, _rows(2), crops=[b"second"])
    monkeypatch.undo()
    assert [(one.name, one.images) for one in gallery.people()] == [("Ann", 1)]
    assert gallery.crops("Ann") == [b"first"] and gallery.stats().crops == 1
    # They may just be in the middle of being written by another program.
    findings = gallery.verify_erasure().findings
    assert findings[0] == "every crop that is older than an hour belongs to an enrolled person"
    monkeypatch.setattr(milvus_crops, "ORPHAN_SECONDS", -10)
    erasure = gallery.verify_erasure([b"Ann", b"Bob"])
    assert erasure.findings[:3] == (
        "2 sets of crops without a person were removed",
        "'Ann' is still enrolled",
        "'Bob' is not enrolled",
    )
    assert not erasure.complete and "cannot be searched over the network" in erasure.findings[3]
    assert gallery._server.count(gallery._crop_collection.collection) == 1
    assert gallery.crops("Ann") == [b"first"]


def test_forgetting_says_what_it_did(
    gallery: MilvusGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.add("Ann", _rows(1), crops=[b"x" * 100_000])
    forgotten = gallery.forget("Ann")
    assert not forgotten.erased and forgotten.crops == 1
    assert forgotten.explanation.startswith(
        "the person cannot be found any more, but bytes are left"
    )
    assert forgotten.explanation.endswith("compaction has started")
    assert gallery._server.count(gallery._crop_collection.collection) == 0
    gallery.add("Bob", _rows(2), crops=[b"y"])
    call = gallery._server.call

    def limited(method: str, *arguments: object, **options: object) -> object:
        if method == "flush":
            raise ValueError("Milvus refused flush: request is rejected: rate limit exceeded")
        return call(method, *arguments, **options)

    monkeypatch.setattr(gallery._server, "call", limited)
    assert gallery.forget("Bob").explanation.endswith("postponed by the server's rate limit")
    gallery.add("Cleo", _rows(3), crops=[b"z"])

    def gone(method: str, collection: str, *arguments: object, **options: object) -> object:
        if method == "delete" and collection == gallery._crop_collection.collection:
            raise ValueError("no Milvus server answers")
        return call(method, collection, *arguments, **options)

    monkeypatch.setattr(gallery._server, "call", gone)
    with pytest.raises(ValueError, match=r"cannot be found any more, but .* verify-erasure"):
        gallery.forget("Cleo")
    assert "Cleo" not in gallery


def test_crops_that_are_damaged_or_too_many(
    gallery: MilvusGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.add("Ann", _rows(1), crops=[b"x" * 100_000])
    (row,) = [row for row in gallery._server.rows(gallery._crop_collection.collection, ("key",))
              if row["key"].endswith("00000001")]  # fmt: skip
    gallery._server.call("delete", gallery._crop_collection.collection, ids=[row["key"]])
    with pytest.raises(
        ValueError, match="stored crops are missing or damaged; enroll the person again"
    ):
        gallery.crops("Ann")
    monkeypatch.setattr(milvus_crops, "MAX_CROPS_BYTES", 1000)
    with pytest.raises(ValueError, match="the maximum is 1000"):
        gallery.add("Bob", _rows(2), crops=[b"x" * 1001])
    monkeypatch.setattr(milvus_crops, "MAX_LIST_LENGTH", 50)
    with pytest.raises(ValueError, match="are too many for a Milvus gallery"):
        gallery.add("Bob", _rows(2), crops=[b"x"])
    assert "Bob" not in gallery


def test_an_interrupted_creation_or_a_restart_is_made_good(address: str) -> None:
    place = MilvusAddress.parse(address)
    server = MilvusServer(place)
    prepare = server.prepare
    server.prepare = lambda collection, metric: None  # type: ignore[method-assign]
    create_people_collection(server, CARD)
    server.prepare = prepare  # type: ignore[method-assign]
    with open_gallery(address) as gallery:
        gallery.add("Ann", _rows(1))
    server.call("release_collection", place.collection)
    with open_gallery(address) as gallery:
        assert gallery.search(_rows(1))[0][0].name == "Ann"
    server.close()


def test_the_token_is_sent(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pymilvus

    given = {}

    def client(**options: object) -> None:
        given.update(options)
        raise pymilvus.MilvusException(code=65535, message="auth check failure, please check")

    monkeypatch.setattr(pymilvus, "MilvusClient", client)
    monkeypatch.setenv("MARGRAVE_MILVUS_TOKEN", "root:Milvus")
    with pytest.raises(ValueError, match="set the environment variable MARGRAVE_MILVUS_TOKEN"):
        open_gallery(address)
    assert given["token"] == "root:Milvus"


class Proxy:
    """Forwards a port to the server until it stalls or hangs up."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.target = host, int(port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.flowing = threading.Event()
        self.flowing.set()
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                self.sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                self.flowing.wait()
                other.sendall(data)

    def hang_up(self) -> None:
        # Closing alone would leave a thread that waits in accept.
        for each in (self.listener, *self.sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.flowing.set()


ACTIONS: dict[str, Callable[[Gallery], object]] = {
    "add": lambda gallery: gallery.add("Bob", _rows(5)),
    "search": lambda gallery: gallery.search(_rows(6)),
    "forget": lambda gallery: gallery.forget("Ann"),
    "people": lambda gallery: list(gallery.people()),
    "get": lambda gallery: gallery.get("Ann"),
    "verify": lambda gallery: gallery.verify_erasure(),
    "thresholds": lambda gallery: gallery.set_thresholds([]),
}


@pytest.mark.parametrize("how", ["stalls", "hangs up"])
def test_a_server_that_goes_away(milvus_server: str, how: str) -> None:
    proxy = Proxy(milvus_server)
    name = f"test_{uuid.uuid4().hex}"
    with create_gallery(f"milvus://{milvus_server}/{name}", CARD) as direct:
        direct.add("Ann", _rows(1))
        store = MilvusStore(timeout=1.5)
        behind = store.open(f"milvus://127.0.0.1:{proxy.port}/{name}", None)
        assert behind.search(_rows(1))[0][0].name == "Ann"
        if how == "stalls":
            proxy.flowing.clear()
        else:
            proxy.hang_up()
        for action, function in ACTIONS.items():
            begun = time.monotonic()
            with pytest.raises(
                ValueError, match=rf"127.0.0.1:{proxy.port}.*check the host, the port"
            ):
                function(behind)
            assert time.monotonic() - begun < 6, action
        assert [person.name for person in direct.people()] == ["Ann"]
        behind.close()
    proxy.hang_up()
