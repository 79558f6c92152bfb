"""Configurations: merging, checking, and coming back from the file stored with a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from margrave.config import (
    merge,
    parse_overrides,
    read_config,
    save_config,
)
from margrave.recipes import recipe_names, recipe_text

DATA = {"data": {"train": {"kind": "folder", "root": "faces"}}}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_says_what_it_is(name: str, tmp_path: Path) -> None:
    data = {"train": {"kind": "folder", "root": "faces"}}
    config = read_config([name], {} if name == "demo" else {"data": data})
    heading = recipe_text(name).splitlines()[:4]
    assert heading[0].startswith("# ")
    assert [line.split(":")[0] for line in heading[1:]] == ["# command", "# duration", "# expected"]
    save_config(config, tmp_path / "config.yaml")
    assert read_config([str(tmp_path / "config.yaml")], {}) == config


def test_a_changed_kind_replaces_its_block() -> None:
    config = read_config(["small"], DATA | parse_overrides(["loss.kind=sv_softmax"]))
    assert config.loss["kind"] == "sv_softmax"
    assert config.loss["margin"] == 0.45


def test_settings_of_the_new_kind_may_come_first() -> None:
    overrides = parse_overrides(["loss.margin=0.2", "loss.kind=cosface"])
    assert read_config(["small"], DATA | overrides).loss["margin"] == 0.2


def test_the_same_kind_keeps_its_block() -> None:
    base = {"loss": {"kind": "arcface", "margin": 0.3}}
    assert merge(base, {"loss": {"kind": "arcface", "scale": 30}})["loss"] == {
        "kind": "arcface",
        "margin": 0.3,
        "scale": 30,
    }


def test_later_files_win(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"training": {"epochs": 2}}))
    assert read_config(["small", str(mine)], DATA).training.epochs == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainin.epochs=3"], r"no setting 'trainin'; did you mean 'training'"),
        (["training.epoch=3"], r"no setting 'training.epoch'; did you mean 'epochs'"),
        (
            ["training.optimizer.lr=3"],
            r"no setting 'training.optimizer.lr'; did you mean 'learning_rate'",
        ),
        (["loss.margim=0.3"], r"loss 'adaface' has no setting 'margim'; did you mean 'margin'"),
        (["loss.kind=adafase"], r"unknown loss 'adafase'; did you mean 'adaface'"),
        (["backbone.kind=resnet50"], r"unknown backbone 'resnet50'; did you mean 'iresnet50'"),
        (["backbone.depth=5"], r"backbone 'iresnet' has no setting 'depth'"),
        (["data.augmentation.flips=1"], r"data.augmentation has no setting 'flips'; did you mean"),
        (["data.train.kind=folders"], r"unknown data set 'folders'; did you mean 'folder'"),
        (["head.kind=dens"], r"unknown head 'dens'; did you mean 'dense'"),
        (["head.blocks=3"], r"head 'chunked' has no setting 'blocks'"),
        (["head.block_size=abc"], r"head 'chunked', block_size = 'abc': must be a whole number"),
        (["head.block_size=-5"], r"head 'chunked': block_size = -5 must be at least 1"),
        (["head.products=nonsense"], r"head 'chunked', products = 'nonsense': must be 'auto'"),
        (["head.memory_budget=x"], r"head 'chunked', memory_budget = 'x': must be a number"),
        (["head.sample_rate=2"], r"head 'chunked': sample_rate = 2.0 must be in"),
        (["head.num_classes=5"], r"head 'chunked' has no setting 'num_classes'"),
        (["training.epochs=many"], r"training.epochs = 'many': must be a whole number"),
        (["training.epochs=0"], r"training.epochs = 0: .*greater than or equal to 1"),
        (["loss.margin=wide"], r"margin = 'wide'"),
        (["backbone.image_size=32"], r"backbone.image_size = 32 but data.image_size = 64"),
        (["loss.margin=-3"], r"AdaFace.margin = -3.0 must be in"),
        (["data.augmentation.flip=3"], r"flip = 3.0 is a probability"),
        (["training.schedule.kind=step"], r"kind 'step' needs milestones"),
        (["training.accumulate=60"], r"leaves micro-batches of fewer than two images"),
        (
            ["evaluation.sets.unseen={images: {kind: folder, root: x}, pear: 100}"],
            r"no setting 'evaluation.sets.unseen.pear'; did you mean 'pairs'",
        ),
        (["training"], r"--set 'training' is not of the form a.b=value"),
        (["training.epochs=[1"], r"is not YAML"),
        (["a=1", "a.b=2"], r"contradicts an earlier --set of 'a'"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(["small"], merge(DATA, parse_overrides(overrides)))


def test_settings_of_the_head_get_their_types_and_no_defaults() -> None:
    config = read_config([], merge(DATA, {"head": {"block_size": "300"}}))
    assert config.head == {"products": "auto", "kind": "chunked", "block_size": 300}


def test_training_images_are_asked_for() -> None:
    with pytest.raises(ValueError, match="no training images: give --data FOLDER"):
        read_config(["adaface_ms1mv2"], {})


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no recipe and no file 'smal'; did you mean 'small'"):
        read_config(["smal"], {})


def test_a_file_without_settings(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="contains a list, not a mapping of settings"):
        read_config([str(tmp_path / "list.yaml")], {})
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(ValueError, match="is not YAML"):
        read_config([str(tmp_path / "broken.yaml")], {})


@pytest.mark.parametrize("setting", ["workers", "threads"])
def test_a_run_starts_no_million_processes(setting: str) -> None:
    changes = {"data": {"train": {"kind": "synthetic"}}, "training": {setting: 1_000_000}}
    with pytest.raises(ValueError, match=f"training.{setting}.* = 1000000: .* less than or equal"):
        read_config([], changes)
