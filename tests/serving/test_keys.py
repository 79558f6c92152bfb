"""API keys: hashed, scoped, rotated; a running service sees changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from margrave.serving import KeyFile


def test_a_token_is_kept_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, token = KeyFile(path).new("door", ["verify", "metrics"])
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert token not in text and token.split("_", 2)[2] not in text and key.id in text
    assert KeyFile(path).key_of_token(token) == key


def test_other_tokens_open_nothing(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key, token = keys.new("", ["verify"])
    others = [
        "",
        "mgv",
        token[:-1],
        token + "x",
        token.replace("mgv", "abc"),
        f"mgv_{key.id}_",
        f"mgv_{key.id}_{key.digest}",
        "mgv_none_secret",
        "\udcff",
        token.upper(),
    ]
    for other in others:
        assert keys.key_of_token(other) is None, other


def test_another_process_rotates_and_revokes(tmp_path: Path) -> None:
    running, other = KeyFile(tmp_path / "keys.json"), KeyFile(tmp_path / "keys.json")
    key, old = other.new("door", ["verify"])
    assert running.key_of_token(old)
    new_key, new = other.rotate(key.id)
    assert (new_key.label, new_key.scopes) == ("door", ("verify",)) and new_key.id != key.id
    assert running.key_of_token(old) is None and running.key_of_token(new)
    other.revoke(new_key.id)
    assert running.key_of_token(new) is None
    with pytest.raises(ValueError, match=f"has no key '{key.id}'"):
        other.revoke(key.id)


def test_wrong_scopes_and_files_are_refused(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    with pytest.raises(ValueError, match=r"unknown scope 'verfy'; did you mean 'verify'"):
        keys.new("", ["verfy"])
    with pytest.raises(ValueError, match="without scopes"):
        keys.new("", [])
    entry = {"id": "ab", "label": "", "scopes": "verify", "digest": "", "created": ""}
    damaged = [{"format_version": 1, "keys": keys} for keys in ([{"id": 3}], [entry])]
    for content in ("[]", "{", *map(json.dumps, damaged), "{}"):
        (tmp_path / "keys.json").write_text(content)
        with pytest.raises(ValueError, match=r"keys\.json"):
            KeyFile(tmp_path / "keys.json")


CHANGE = """
import sys
from margrave.serving import KeyFile
keys = KeyFile(sys.argv[1])
for _ in range(20):
    key, _ = keys.new(sys.argv[2], ["verify"])
    key, _ = keys.rotate(key.id)
    print(key.id)
"""


def test_processes_that_change_keys_at_once_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    KeyFile(path).new("first", ["verify"])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHANGE, str(path), str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    ids = [line for each in processes for line in each.communicate()[0].split()]
    assert [each.returncode for each in processes] == [0, 0, 0]
    assert (
        len(ids) == 60 and set(ids) < set(KeyFile(path).keys()) and len(KeyFile(path).keys()) == 61
    )


def test_a_rotation_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key, _ = keys.new("door", ["verify"])
    states: list[int] = []
    replace = os.replace

    def noting(source: Path, target: Path) -> None:
        replace(source, target)
        states.append(len(json.loads(Path(target).read_text())["keys"]))

    monkeypatch.setattr(os, "replace", noting)
    keys.rotate(key.id)
    assert states == [1]
