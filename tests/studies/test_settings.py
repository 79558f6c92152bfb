"""A study's settings and cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from study_examples import RUN, STUDY

from margrave.recipes import study_names
from margrave.runs import Run
from margrave.studies import cells_of, read_study
from margrave.studies.settings import grid_of, to_yaml

TUNING = {"factors": {"margin": [1.0]}, "validation": "test"}


@pytest.mark.parametrize("name", [name for name in study_names() if name != "losses"])
def test_margraves_own_studies_are_valid(name: str) -> None:
    study = read_study([name], {})
    assert len(study.losses) == 7 and study.seeds >= 5 and study.question
    for claim in study.claims:
        assert claim.loss in study.losses and claim.condition in study.conditions
    conditions = [dict(cell.config.data.train) for cell in cells_of(study, seeds=[0])
                  if cell.loss == "arcface"]  # fmt: skip
    assert all(one != other for one in conditions for other in conditions if one is not other)


def test_cells_differ_in_loss_and_seed_alone() -> None:
    cells = list(cells_of(read_study([STUDY], {})))
    assert [cell.name for cell in cells] == [
        "data/arcface/seed-0",
        "data/adaface/seed-0",
        "data/arcface/seed-1",
        "data/adaface/seed-1",
    ]
    bare = [
        cell.config.model_copy(
            update={
                "loss": {},
                "training": cell.config.training.model_copy(update={"seed": 0}),
            }
        )
        for cell in cells
    ]
    assert all(each == bare[0] for each in bare)


def test_losses_of_one_seed_start_from_one_network_and_see_one_order(tmp_path: Path) -> None:
    losses = ["arcface", "softmax", "adaface", "kappaface", "elasticface", "curricularface"]
    study = read_study([STUDY], {}, losses)
    started = []
    for cell in cells_of(study, seeds=[3]):
        torch.rand(7)  # whatever came before does not matter
        training = Run(cell.config, tmp_path / cell.loss).open_training()
        order = torch.tensor([index for batch in training.sampler for index in batch])
        started.append((training.network.state_dict(), training.head.weight.detach(), order))
    network, weight, order = started[0]
    for other_network, other_weight, other_order in started[1:]:
        assert torch.equal(weight, other_weight) and torch.equal(order, other_order)
        assert network.keys() == other_network.keys()
        assert all(torch.equal(network[name], other_network[name]) for name in network)


def test_chosen_losses_keep_the_studys_hyperparameters() -> None:
    study = read_study(
        [{**STUDY, "claims": [
            {"text": "t", "loss": "adaface", "over": "arcface", "condition": "data"}]}],
        {},
        ["arcface", "cosface"],
    )  # fmt: skip
    assert study.losses["arcface"]["scale"] == 8 and study.losses["cosface"]["kind"] == "cosface"
    assert not study.claims


def test_losses_that_a_study_does_not_list_are_scaled_as_its_arcface_is() -> None:
    losses = {"arcface": {"kind": "arcface", "scale": 16, "margin": 0.2}}
    chosen = ["arcface", "uniface", "sphereface_r", "adacos", "softmax"]
    study = read_study([{**STUDY, "losses": losses}], {}, chosen)
    uniface = study.losses["uniface"]
    assert (uniface["scale"], uniface["margin"]) == (16, 0.16)
    multiple = study.losses["sphereface_r"]
    assert (multiple["scale"], multiple["margin"]) == (16, 1.5)
    assert study.losses["adacos"]["scale"] == study.losses["softmax"]["scale"] == 1


def test_null_removes_a_loss() -> None:
    study = read_study([STUDY], {"losses": {"adaface": None, "normface": "normface"}})
    assert list(study.losses) == ["arcface", "normface"]


def test_a_grid_leaves_out_what_a_loss_lacks() -> None:
    study = read_study(
        [STUDY],
        {
            "losses": {"softmax": "softmax"},
            "tuning": {"factors": {"margin": [0.5, 1], "momentum": [1]}},
        },
    )
    grids = grid_of(study)
    assert list(grids["softmax"]) == ["softmax"]
    assert list(grids["arcface"]) == ["arcface", "arcface margin=0.25"]
    assert grids["arcface"]["arcface margin=0.25"]["margin"] == 0.25


def test_a_study_survives_yaml(tmp_path: Path) -> None:
    study = read_study([STUDY], {"tuning": {"factors": {"margin": [0.5]}}})
    (tmp_path / "study.yaml").write_text(to_yaml(study))
    assert read_study([str(tmp_path / "study.yaml")], {}) == study


def test_a_study_extends_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("losses: [arcface]\nrecipes: [tiny]\nrun: {training: {epochs: 3}}")
    Path("mine.yaml").write_text("extends: [base.yaml]\nseeds: 4\nrun: {training: {epochs: 9}}")
    study = read_study(["mine.yaml", {"run": RUN}], {"run": {"training": {"epochs": 5}}})
    assert study.seeds == 4 and study.run["training"]["epochs"] == 5
    assert study.run["training"]["clip_norm"] == 5
    Path("mine.yaml").write_text("extends: [mine.yaml]")
    with pytest.raises(ValueError, match=r"'mine.yaml' extends itself"):
        read_study(["mine.yaml"], {})
    Path("mine.yaml").write_text("extends: base.yaml")
    with pytest.raises(ValueError, match=r"extends = 'base.yaml' must be a list of names"):
        read_study(["mine.yaml"], {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sseds": 3}, "no setting 'sseds'; did you mean 'seeds'"),
        ({"test": "tset"}, "no evaluation set 'tset'; did you mean 'test'"),
        ({"losses": {"../x": "arcface"}}, r"loss's name '../x' cannot be a folder's name"),
        ({"losses": {"x": "arcfase"}}, "unknown loss 'arcfase'; did you mean 'arcface'"),
        ({"losses": {"x": {"kind": "arcface", "margin": 9}}}, "margin = 9"),
        ({"run": {"training": {"epoch": 3}}}, "no setting 'training.epoch'"),
        ({"seeds": 0}, "seeds = 0"),
        ({"metric": "F1"}, "metric = 'F1'"),
        ({"metric": "TAR", "far": 0.05, "tuning": TUNING}, "far = 0.05, but tun"),
        (
            {"claims": [{"text": "t", "loss": "x", "over": "arcface", "condition": "data"}]},
            "claim is about the loss 'x'",
        ),
    ],
)
def test_faults_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_study([STUDY], changes)
    with pytest.raises(ValueError, match=r"no study and no file 'qualty'; did you mean 'quality'"):
        read_study(["qualty"], {})


def test_a_claim_without_its_loss_is_named() -> None:
    incomplete = {"claims": [{"text": "t", "over": "arcface", "condition": "data"}]}
    with pytest.raises(ValueError, match=r"needs a value for 'claims.0.loss'"):
        read_study([STUDY], incomplete, ["arcface"])
