import shutil
from pathlib import Path

import pytest
from sana_streaming.sana_core.weights.toy_text import make_toy_text_encoder


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    return make_toy_text_encoder(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def copy(toy, tmp_path):
    """A toy folder that a test may damage."""
    return Path(shutil.copytree(toy, tmp_path / "copy"))
