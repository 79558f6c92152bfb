"""``margrave serve`` checks what it was told before it opens or makes anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import margrave.matching
from margrave.cli.serve import serve


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "in plain text over the network"),
        ({"tls_certificate": Path("c.pem")}, "give --tls-key too"),
        ({"rate": "many"}, "'many' is not a rate"),
        ({"keys": Path("damaged.json")}, "damaged.json is not JSON"),
    ],
)
def test_what_is_refused_leaves_no_gallery_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    def load(*args: Any, **options: Any) -> None:
        Path("people.gallery").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(margrave.matching.Matcher, "load", load)
    Path("damaged.json").write_text("{")
    with pytest.raises(ValueError, match=message):
        serve(gallery="people.gallery", **options)
    assert not Path("people.gallery").exists()
