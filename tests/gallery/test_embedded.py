"""The gallery in files: killed at any moment, damaged, encrypted, shared, erased."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from margrave.gallery import (
    GalleryCard,
    GalleryError,
    NoGallery,
    create_gallery,
    new_key,
    open_gallery,
)
from margrave.gallery.embedded import EmbeddedGallery
from margrave.gallery.erasure import traces_of

KILLS = int(os.environ.get("MARGRAVE_KILLS", "5"))
CARD = GalleryCard(weights="ab12", dimension=8, keep_images=True)
KEY = "a long enough passphrase"


def rows(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8))


def crop(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(3000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "people.gallery"


# Acknowledges each call on its own line, as soon as it has returned.
WRITER = """
import sys
import numpy as np
from margrave.gallery import open_gallery

gallery = open_gallery(sys.argv[1])
generator = np.random.default_rng(int(sys.argv[2]))
present = {person.name for person in gallery.people()}
print("ready", flush=True)
while True:
    name = f"person {generator.integers(12)}"
    number = int(generator.integers(1 << 30))
    if name in present and generator.random() < 0.4:
        print("forget", name, number, flush=True)
        gallery.forget(name)
        present.discard(name)
    else:
        print("add", name, number, flush=True)
        one = np.random.default_rng(number)
        gallery.add(name, one.normal(size=(1, 8)), crops=[one.bytes(3000)], replace=True)
        present.add(name)
    print("done", flush=True)
"""


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_and_nothing_is_half_done(path: Path) -> None:
    create_gallery(str(path), CARD).close()
    state: dict[str, int] = {}
    forgotten: list[int] = []
    draw = random.Random(0)
    for turn in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(turn)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        pending: tuple[str, str, int] | None = None
        for line in process.stdout:
            if line == "done\n" and pending is not None:
                apply(state, forgotten, pending)
                pending = None
            elif line.endswith("\n") and line != "done\n":
                verb, first, second, number = line.split()
                pending = (verb, f"{first} {second}", int(number))
        process.wait()
        with open_gallery(str(path)) as gallery:
            assert isinstance(gallery, EmbeddedGallery)
            there = {person.name for person in gallery.people()}
            if pending is not None:
                # The last call may have been done, or not at all.
                number = pending[2]
                done = dict(state), list(forgotten)
                apply(*done, pending)
                if there == set(done[0]) and same_vectors(gallery, done[0]):
                    state, forgotten = done
            assert there == set(state)
            assert same_vectors(gallery, state)
            erasure = gallery.verify_erasure()
            assert erasure.complete, erasure.findings
            assert "vectors with a wrong checksum: 0" in erasure.findings
        content = b"".join(each.read_bytes() for each in path.parent.iterdir())
        for number in forgotten:
            one = np.random.default_rng(number)
            one.normal(size=(1, 8))
            assert not any(trace in content for trace in traces_of(one.bytes(3000)))


def apply(state: dict[str, int], forgotten: list[int], call: tuple[str, str, int]) -> None:
    verb, name, number = call
    if name in state:
        forgotten.append(state.pop(name))
    if verb == "add":
        state[name] = number


def same_vectors(gallery: EmbeddedGallery, state: dict[str, int]) -> bool:
    for name, number in state.items():
        one = np.random.default_rng(number)
        expected = one.normal(size=(1, 8))[0]
        if not np.allclose(gallery.vector(name), expected, rtol=1e-5, atol=1e-6):
            return False
        if gallery.crops(name) != [one.bytes(3000)]:
            return False
    return True


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_every_byte_of_whom_is_forgotten_is_gone(path: Path, key: str | None) -> None:
    with create_gallery(str(path), CARD, key=key) as gallery:
        for number in range(30):
            kept = [crop(number), crop(1000 + number)]
            gallery.add(f"someone {number:02}", rows(number, 2), crops=kept)
        for number in range(0, 30, 2):
            name = f"someone {number:02}"
            done = gallery.forget(name)
            assert done.erased and done.crops == 2, done.explanation
            content = b"".join(each.read_bytes() for each in path.parent.iterdir())
            assert name.encode() not in content
            assert not any(trace in content for trace in traces_of(crop(number)))
        erasure = gallery.verify_erasure([b"someone 00"])
        assert erasure.complete, erasure.findings
        with pytest.raises(ValueError, match="nobody is enrolled as 'someone 00'"):
            gallery.forget("someone 00")
        found = gallery.verify_erasure([b"someone 01"])
        assert found.complete is (key is not None)


def test_what_others_write_is_seen(path: Path) -> None:
    with create_gallery(str(path), CARD) as one, open_gallery(str(path)) as other:
        one.add("Ann", rows(1))
        assert other.search(rows(1))[0][0].name == "Ann"
        other.add("Bo", rows(2))
        assert one.search(rows(2))[0][0].name == "Bo"
        other.forget("Ann")
        assert [each.name for each in one.search(rows(1))[0]] == ["Bo"]
        one.add("Ann", rows(3))
        assert other.search(rows(3))[0][0].name == "Ann"


def interrupted(target: object, method: str, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Call `change` once, when the first call of this method returns."""
    original, pending = getattr(target, method), [change]

    def run(*given: Any) -> Any:
        result = original(*given)
        while pending:
            pending.pop()()
        return result

    monkeypatch.setattr(target, method, run)


def test_forget_removes_nobody_who_was_enrolled_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_gallery(str(path), CARD) as one, open_gallery(str(path)) as other:
        assert isinstance(one, EmbeddedGallery)
        one.add("Ann", rows(1), crops=[crop(1)])

        def replace_ann_by_bo() -> None:
            with contextlib.suppress(ValueError):  # Ann may be forgotten already
                other.forget("Ann")
            other.add("Bo", rows(2), crops=[crop(2)])

        thread = threading.Thread(target=replace_ann_by_bo)

        def start() -> None:
            thread.start()
            time.sleep(0.5)

        interrupted(one._database, "crops", monkeypatch, start)
        assert one.forget("Ann").erased
        thread.join()
        assert [person.name for person in other.people()] == ["Bo"]
        assert other.crops("Bo") == [crop(2)]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_a_vector_that_moves_while_it_is_read_is_not_damaged(
    path: Path, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_gallery(str(path), CARD, key=key) as one, open_gallery(str(path), key=key) as other:
        assert isinstance(one, EmbeddedGallery)
        one.add("Ann", rows(1))
        interrupted(
            one._vector_file, "read", monkeypatch, lambda: other.add("Ann", rows(2), replace=True)
        )
        np.testing.assert_allclose(one.vector("Ann"), other.vector("Ann"))
        interrupted(
            one._database,
            "row_by_slot",
            monkeypatch,
            lambda: other.add("Ann", rows(3), replace=True),
        )
        [[candidate]] = one.search(rows(3))
        assert candidate.name == "Ann" and candidate.similarity == pytest.approx(1)


def test_crops_are_those_of_the_named_person(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create_gallery(str(path), CARD) as one, open_gallery(str(path)) as other:
        assert isinstance(one, EmbeddedGallery)
        one.add("Ann", rows(1), crops=[crop(1)])

        def replace_ann_by_bo() -> None:
            other.forget("Ann")
            other.add("Bo", rows(2), crops=[crop(2)])

        interrupted(one._database, "row_by_key", monkeypatch, replace_ann_by_bo)
        with pytest.raises(ValueError, match="nobody is enrolled as 'Ann'"):
            one.crops("Ann")


def test_two_processes_write_in_turns(path: Path) -> None:
    create_gallery(str(path), CARD).close()
    script = (
        "import sys, numpy as np\n"
        "from margrave.gallery import open_gallery\n"
        "gallery = open_gallery(sys.argv[1])\n"
        "for number in range(25):\n"
        "    row = np.random.default_rng(number).normal(size=(1, 8))\n"
        "    gallery.add(f'{sys.argv[2]} {number}', row)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in ("a", "b")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    with open_gallery(str(path)) as gallery:
        assert len(gallery) == 50 and gallery.verify_erasure().complete


def test_an_encrypted_gallery_tells_nothing_without_its_key(path: Path) -> None:
    key = new_key()
    with create_gallery(str(path), CARD, key=key) as gallery:
        gallery.add("Someone Special", rows(1), crops=[crop(1)])
        expected = gallery.vector("Someone Special")
    content = b"".join(each.read_bytes() for each in path.parent.iterdir())
    secrets = [b"Someone", b"ab12", *traces_of(crop(1))]
    unit = (expected / np.linalg.norm(expected)).astype(np.float32).tobytes()
    assert not any(secret in content for secret in (*secrets, unit[:8]))
    with open_gallery(str(path), key=key) as gallery:
        assert gallery.crops("Someone Special") == [crop(1)]
        assert gallery.search(rows(1))[0][0].name == "Someone Special"
        assert gallery.stats().encrypted
    with pytest.raises(ValueError, match="is encrypted; give its key"):
        open_gallery(str(path))
    with pytest.raises(ValueError, match="cannot be decrypted"):
        open_gallery(str(path), key=new_key())
    with pytest.raises(ValueError, match="too short"):
        open_gallery(str(path), key="short")


def test_a_key_for_a_plain_gallery_is_refused(path: Path) -> None:
    create_gallery(str(path), CARD).close()
    with pytest.raises(ValueError, match="is not encrypted, but a key is given"):
        open_gallery(str(path), key=KEY)


def test_galleries_of_others_are_refused(path: Path) -> None:
    with pytest.raises(NoGallery, match="no such gallery"):
        open_gallery(str(path))
    create_gallery(str(path), CARD).close()
    with pytest.raises(ValueError, match="exists already"):
        create_gallery(str(path), CARD)
    with pytest.raises(ValueError, match=r"another model.*with different weights"):
        open_gallery(str(path), card=GalleryCard(weights="cd34", dimension=8))
    with pytest.raises(ValueError, match="unknown kind of gallery 'http'"):
        open_gallery("http://example.org/faces")
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.commit()
    database.close()
    with pytest.raises(
        ValueError, match="is a gallery of format 7, but this version of Margrave reads 1"
    ):
        open_gallery(str(path))


def test_files_that_belong_to_others_are_refused(path: Path, tmp_path: Path) -> None:
    create_gallery(str(path), CARD).close()
    other = tmp_path / "other.gallery"
    create_gallery(str(other), CARD).close()
    vectors = tmp_path / "people.gallery-vectors"
    kept = vectors.read_bytes()
    vectors.write_bytes((tmp_path / "other.gallery-vectors").read_bytes())
    with pytest.raises(ValueError, match="belongs to another gallery"):
        open_gallery(str(path))
    vectors.unlink()
    with pytest.raises(ValueError, match="put this file back"):
        open_gallery(str(path))
    vectors.write_bytes(kept)
    open_gallery(str(path)).close()
    for content in (b"", b"SQLite format 3\0" + bytes(200), b"{}"):
        other.write_bytes(content)
        with pytest.raises(ValueError, match="is not a gallery"):
            open_gallery(str(other))


def test_damage_is_named_and_never_answers_wrongly(path: Path) -> None:
    with create_gallery(str(path), CARD) as gallery:
        for number in range(40):
            gallery.add(f"person {number}", rows(number), crops=[crop(number)])
    whole, vectors = path.read_bytes(), path.with_name("people.gallery-vectors")
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        start = int(generator.integers(len(damaged)))
        damaged[start : start + 300] = generator.bytes(len(damaged[start : start + 300]))
        path.write_bytes(damaged)
        try:
            with open_gallery(str(path)) as gallery:
                for number in range(40):
                    found = gallery.search(rows(number), 1)[0][0]
                    assert found.name == f"person {number}" and found.similarity > 0.999
                    gallery.crops(found.name)
        except ValueError:
            refused += 1
    assert refused > 20
    path.write_bytes(whole)
    content = bytearray(vectors.read_bytes())
    content[4096 + 3 * 32 + 1] ^= 1
    vectors.write_bytes(content)
    with open_gallery(str(path)) as gallery:
        with pytest.raises(ValueError, match="is damaged: the vector of 'person 3' has changed"):
            gallery.search(rows(3), 1)
        findings = gallery.verify_erasure().findings
        assert "vectors with a wrong checksum: 1" in findings


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize(
    "change",
    [
        "people SET slot = 'text'",
        "people SET slot = 1.5",
        "people SET slot = -1",
        f"people SET slot = {2**62}",
        f"people SET slot = {2**32 - 2}",
        "people SET record = 'text'",
        "people SET checksum = x'00'",
        f"people SET id = {2**62}",
        "crops SET content = 'text'",
        f"free SET slot = {2**62}",
        f"free SET slot = {2**32 - 2}",
        f"meta SET value = {2**63 - 1} WHERE name = 'generation'",
    ],
)
def test_a_column_of_the_wrong_type_is_damage(path: Path, change: str, key: str | None) -> None:
    with create_gallery(str(path), CARD, key=key) as gallery:
        for name in ("Bo", "Ann"):
            gallery.add(name, rows(1), crops=[crop(1)])
        gallery.forget("Bo")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE {change}")
        database.commit()
    with (
        pytest.raises(GalleryError, match="is damaged: "),
        open_gallery(str(path), key=key) as gallery,
    ):
        gallery.search(rows(1))
        gallery.crops("Ann")
        gallery.add("Cleo", rows(2))


def test_a_damaged_slot_number_does_not_enlarge_the_vector_file(path: Path) -> None:
    with create_gallery(str(path), CARD) as gallery:
        gallery.add("Ann", rows(1))
    vectors = path.with_name("people.gallery-vectors")
    size = vectors.stat().st_size
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE people SET slot = {2**32 - 2}")
        database.commit()
    with open_gallery(str(path)) as gallery, pytest.raises(GalleryError, match="vector slots"):
        gallery.add("Bo", rows(2))
    assert vectors.stat().st_size == size


def test_a_mistake_of_the_caller_is_not_damage(path: Path) -> None:
    with create_gallery(str(path), CARD) as gallery:
        with pytest.raises(TypeError, match="bytes-like"):
            gallery.add("Ann", rows(1), crops=["text"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="JSON"):
            gallery.set_thresholds([{"far": object()}])
        assert len(gallery) == 0


def test_a_card_that_cannot_be_is_refused(path: Path) -> None:
    create_gallery(str(path), CARD).close()
    fields = json.loads(CARD.to_json())
    for change, message in (
        ({"format_version": 9}, "format_version 9"),
        ({"dimension": 10**9}, "dimension = 1000000000"),
        ({"dimensions": 8}, "unknown field 'dimensions'; did you mean 'dimension'"),
        ({"fusion": "best"}, "fusion = 'best'"),
    ):
        database = sqlite3.connect(path)
        text = json.dumps({**fields, **change}).encode()
        database.execute("UPDATE meta SET value = ? WHERE name = 'card'", (text,))
        database.commit()
        database.close()
        with pytest.raises(ValueError, match=message):
            open_gallery(str(path))


def test_half_precision_takes_half_the_room(tmp_path: Path) -> None:
    card = GalleryCard(weights="ab12", dimension=8, half=True)
    with create_gallery(str(tmp_path / "half.gallery"), card) as gallery:
        gallery.add("Ann", rows(1))
        assert gallery.search(rows(1))[0][0].similarity == pytest.approx(1, abs=1e-3)
        assert gallery._vector_file.slot_bytes == 16  # pyright: ignore[reportAttributeAccessIssue]
