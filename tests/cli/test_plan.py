from __future__ import annotations

import pytest
from typer.testing import CliRunner

from margrave.cli import app

MACHINE = ("--teraflops", "60", "--bf16-teraflops", "400", "--memory-bandwidth", "4000")


def test_a_plan_reads_the_configuration_of_a_training() -> None:
    arguments = ["plan", "adaface_ms1mv2", "--classes", "10000000", "--ranks", "8", *MACHINE]
    result = CliRunner().invoke(app, [*arguments, "--images", "1000000", "--device", "cuda"])
    assert result.exit_code == 0, result.output
    for part in ("10,000,000 identities", "class centers", "2.56", "three products", "an epoch"):
        assert part in result.output


def test_the_head_alone() -> None:
    result = CliRunner().invoke(app, ["plan", "--classes", "1000", "--head-only", *MACHINE])
    assert result.exit_code == 0, result.output
    assert "activations" not in result.output


@pytest.mark.parametrize("arguments", [["--device", "tpu"], ["--set", "training.bacth_size=1"]])
def test_mistakes_are_told(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["plan", "--classes", "1000", *MACHINE, *arguments])
    assert isinstance(result.exception, ValueError)
