import os

import pytest
import torch

# No test asks a hub, or finds what the user once fetched from one. Read when huggingface_hub is imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": os.devnull}


@pytest.fixture(autouse=True, scope="session")
def _one_thread_count() -> None:
    """Bit-for-bit comparisons need one thread count in every process; for tiny tensors one thread is the fastest."""
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-schemas", action="store_true", help="freeze the node schemas as they are")
