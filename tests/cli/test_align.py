"""``margrave align`` on real photos, where they are at hand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from margrave.cli import app
from margrave.data import ImageFolder

SHARED = Path(__file__).parents[3] / "shared"
PHOTOS, MODEL = SHARED / "data" / "photos", SHARED / "models" / "yunet_s_dynamic.onnx"
if os.environ.get("MARGRAVE_REQUIRE_SHARED"):
    assert PHOTOS.is_dir(), "the real photos are required here"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no real photos here")
def test_photos_become_a_folder_to_train_on(tmp_path: Path) -> None:
    shutil.copytree(PHOTOS / "person_b", tmp_path / "photos" / "b")
    shutil.copytree(PHOTOS / "person_c", tmp_path / "photos" / "c")
    os.chmod(tmp_path / "photos" / "c", 0o755)
    (tmp_path / "photos" / "c" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    command = ["align", str(tmp_path / "photos"), str(tmp_path / "crops"), "--yunet", str(MODEL)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "5 faces from 5 photos" in result.output and "rejected: c/torn.jpg" in result.output
    assert len(ImageFolder(tmp_path / "crops")) == 5
    assert "c/torn.jpg" in (tmp_path / "crops" / "rejected.csv").read_text()
    assert (tmp_path / "crops_contact_sheet.png").is_file()


def test_no_photos_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["align", str(tmp_path), str(tmp_path / "crops")])
    assert isinstance(result.exception, ValueError) and "contain no photos" in str(result.exception)
