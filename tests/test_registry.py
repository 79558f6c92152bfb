"""Registries: unknown names, settings read from signatures."""

from __future__ import annotations

from pathlib import Path

import pytest

from margrave.losses import create
from margrave.registry import Registry, import_path


def test_a_name_is_given_once() -> None:
    registry: Registry = Registry("thing")
    registry.register("one")(dict)
    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        registry.register("one")(list)


def test_a_missing_setting_is_asked_for() -> None:
    registry: Registry = Registry("thing")

    @registry.register("boxed")
    def boxed(size: int, color: str = "red") -> tuple[int, str]:
        return size, color

    with pytest.raises(ValueError, match="thing 'boxed' needs a value for 'size'"):
        registry.create({"kind": "boxed"})
    assert registry.create({"kind": "boxed", "size": 2}) == (2, "red")


def test_modules_of_the_working_directory_can_be_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_things.py").write_text("def answer():\n    return 42\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    assert import_path("my_things:answer")() == 42
    with pytest.raises(ValueError, match="has no 'anser'; did you mean 'answer'"):
        import_path("my_things:anser")
    with pytest.raises(ValueError, match="'my_things:number' is a int, not a class or function"):
        import_path("my_things:number")


def test_a_name_of_another_registry_is_recognized() -> None:
    from margrave.heads import HEADS
    from margrave.losses import LOSSES

    assert "adaface" in LOSSES
    with pytest.raises(
        ValueError, match=r"unknown head 'adaface' \('adaface' is a loss\); choices: "
    ):
        HEADS.get("adaface")


def test_settings_of_a_subclass_in_another_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The inherited field's annotation is a name of `margrave.losses.arcface` alone.
    (tmp_path / "my_arcface.py").write_text(
        "from dataclasses import dataclass\n"
        "from margrave.losses import ArcFace\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(ArcFace):\n"
        "    extra: float = 2.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loss = create({"kind": "my_arcface:Mine", "beyond_pi": "clip"})
    assert loss.settings()["extra"] == 2 and loss.settings()["beyond_pi"] == "clip"
    with pytest.raises(ValueError, match="beyond_pi = 'clop'"):
        create({"kind": "my_arcface:Mine", "beyond_pi": "clop"})
