"""Damaged files are read or refused: no other exception, little memory, no execution."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MUTATIONS = os.environ.get("MARGRAVE_MUTATIONS", "20000")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by RLIMIT_AS")
def test_mutated_files_are_read_or_refused() -> None:
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), MUTATIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused" in done.stdout and "read" in done.stdout
