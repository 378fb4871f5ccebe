"""Fixtures that more than one part of the test suite uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

SHARED_VARIABLE = "CAPTUM_TRANSFORMER_LRP_SHARED"


def pytest_configure() -> None:
    # The models are small: threads that compete for the cores of the workers only slow them down.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained models, photos and reference numbers that is not in the repository.

    It is `$CAPTUM_TRANSFORMER_LRP_SHARED` where that is set, else `shared` beside the repository.
    Tests that need it are skipped where there is none.
    """
    chosen = os.environ.get(SHARED_VARIABLE)
    folder = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "models").is_dir():
        pytest.skip(f"no trained models in {folder}: set {SHARED_VARIABLE} to their folder")
    return folder


# They need environments of their own.
collect_ignore_glob = ["reference/make_*.py"]
