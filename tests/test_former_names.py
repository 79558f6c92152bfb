"""Settings of 0.1's files are read under their former names, and only where they are Margrave's."""

from __future__ import annotations

import pytest

from margrave.former_names import AUGMENTATION, OPTIMIZER, current_card, current_config, renamed


def test_a_run_of_0_1() -> None:
    former = {
        "data": {"augmentation": {"grey": 0.3, "flip": 0.5}},
        "backbone": {"kind": "iresnet", "initialisation": "normal"},
        "training": {"epochs": 3, "optimizer": {"second_momentum": 0.9}},
        "loss": {"kind": "mine:Mine", "deviation": 2},
    }
    assert current_config(former) == {
        "data": {"augmentation": {"gray": 0.3, "flip": 0.5}},
        "backbone": {"kind": "iresnet", "initialization": "normal"},
        "training": {"epochs": 3, "optimizer": {"beta2": 0.9}},
        "loss": {"kind": "mine:Mine", "deviation": 2},
    }
    assert current_config({"loss": {"kind": "arcface"}}) == {"loss": {"kind": "arcface"}}


def test_custom_networks_keep_their_own_names() -> None:
    spec = {"kind": "their:Net", "initialisation": "zeros"}
    assert current_card({"backbone": spec, "deviation": 0.5}) == {"backbone": spec, "std": 0.5}


@pytest.mark.parametrize("names", [AUGMENTATION, OPTIMIZER])
def test_both_names_are_refused(names: dict[str, str]) -> None:
    former, name = next(iter(names.items()))
    with pytest.raises(ValueError, match=f"both {name!r} and its former name"):
        renamed({former: 1, name: 2}, names)
    assert renamed(None, names) is None
