import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_count() -> None:
    """Bit-for-bit comparisons need one thread count in every process."""
    torch.set_num_threads(2)
