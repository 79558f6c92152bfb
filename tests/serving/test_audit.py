"""The audit trail: appended, chained, without names."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from margrave.serving import AuditTrail, verify_trail
from margrave.serving.audit import TrailUnavailable


def test_every_line_follows_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    threads = [
        threading.Thread(target=lambda: [trail.record("enroll", "Ann", "k") for _ in range(10)])
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = AuditTrail(path)
    other.record("forget", "Ann", "k", erased=True)
    assert verify_trail(path) == 31
    assert "Ann" not in path.read_text()
    assert other.pseudonym("Ann") == trail.pseudonym("Ann") != trail.pseudonym("Bo")


def test_a_changed_trail_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    for name in ("Ann", "Bo", "Cy", "Di"):
        trail.record("enroll", name, "k")
    lines = path.read_bytes().splitlines(keepends=True)
    for changed, line in (
        (lines[1:], 1),
        ([lines[0], *lines[2:]], 2),
        ([lines[0], lines[1].replace(b"enroll", b"forget"), *lines[2:]], 3),
        ([lines[1], lines[0], *lines[2:]], 1),
    ):
        path.write_bytes(b"".join(changed))
        with pytest.raises(ValueError, match=f"line {line} does not follow"):
            AuditTrail(path)


def test_a_line_that_was_cut_off_was_never_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditTrail(path).record("enroll", "Ann", "k")
    with open(path, "ab") as file:
        file.write(b'{"time": "20')
    AuditTrail(path).record("enroll", "Bo", "k")
    assert verify_trail(path) == 2


def test_two_spellings_of_a_name_are_one_person(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path / "audit.jsonl")
    assert trail.pseudonym("Zoe\u0308") == trail.pseudonym("Zo\u00eb") != trail.pseudonym("Zoe")


class FullDisk:
    """Takes so many bytes; then the disk is full, as it is found while writing or while syncing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int, syncs: bool = True) -> None:
        self.left, self.syncs = left, syncs
        self.write, self.sync = os.write, os.fsync
        monkeypatch.setattr(os, "write", self.limited_write)
        monkeypatch.setattr(os, "fsync", self.limited_sync)

    def limited_write(self, file: int, content: bytes) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.write(file, bytes(content)[: self.left])
        self.left -= written
        return written

    def limited_sync(self, file: int) -> None:
        if not self.syncs:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.sync(file)


@pytest.mark.parametrize(("left", "syncs"), [(0, True), (100, True), (10**6, False)])
def test_a_full_disk_leaves_the_trail_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, syncs: bool
) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    trail.record("enroll", "Ann", "k")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        FullDisk(patch, left, syncs)
        with pytest.raises(TrailUnavailable, match="nothing was changed"):
            trail.record("enroll", "Bo", "k")
    assert path.read_bytes() == before
    trail.record("enroll", "Bo", "k")
    assert verify_trail(path) == 2


def test_a_half_line_swallows_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    trail.record("enroll", "Ann", "k")
    # As another process leaves it that is killed while it writes.
    with open(path, "ab") as file:
        file.write(b'{"time": "20')
    trail.record("enroll", "Bo", "k")
    assert verify_trail(path) == 2


def test_trails_that_start_at_once_share_one_complete_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    draw = secrets.token_hex

    def draw_slowly(size: int) -> str:
        time.sleep(0.2)
        return draw(size)

    monkeypatch.setattr(secrets, "token_hex", draw_slowly)
    with ThreadPoolExecutor(3) as pool:
        trails = list(pool.map(lambda _: AuditTrail(path), range(3)))
    assert len({trail.pseudonym("Ann") for trail in trails}) == 1
    key = tmp_path / "audit.jsonl.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_text()) == 64
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, key.name]


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    AuditTrail(tmp_path / "audit.jsonl")
    (tmp_path / "audit.jsonl.key").write_text("")
    with pytest.raises(ValueError, match=r"audit\.jsonl\.key is damaged"):
        AuditTrail(tmp_path / "audit.jsonl")


def test_a_trail_without_its_key_is_refused(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path / "audit.jsonl")
    trail.record("enroll", "Ann", "k1")
    trail.close()
    (tmp_path / "audit.jsonl.key").unlink()
    with pytest.raises(ValueError, match=r"audit\.jsonl\.key, the pseudonym key of .* is missing"):
        AuditTrail(tmp_path / "audit.jsonl")
    assert not (tmp_path / "audit.jsonl.key").exists()


def test_a_line_that_would_be_too_long_changes_nothing(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path / "audit.jsonl")
    trail.record("enroll", "Ann", "k1")
    with pytest.raises(ValueError, match="at most 4096 are allowed"):
        trail.record("enroll", "Ann", "k1", note="x" * 5000)
    assert verify_trail(tmp_path / "audit.jsonl") == 1
