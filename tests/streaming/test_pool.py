"""Pages of many streams: used again, zeroed, never shared by two that live."""

import gc

import pytest
import torch
import toys
from latent_stream import Run
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.passes import Passes
from sana_streaming.sana_core.streaming.pool import ALIGNMENT, StatePool

SLOTS = [((3, 5), torch.float32), ((7,), torch.bfloat16), ((2, 2), torch.float64)]
CPU = torch.device("cpu")


def test_tensors_of_a_page_are_apart_and_zero():
    page = StatePool().take(SLOTS, CPU)
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in page.tensors] == SLOTS
    for number, tensor in enumerate(page.tensors, 1):
        assert not tensor.any()
        assert tensor.data_ptr() % ALIGNMENT == page.storage.data_ptr() % ALIGNMENT
        tensor.fill_(number)
    assert [tensor.unique().tolist() for tensor in page.tensors] == [[1.0], [2.0], [3.0]]


def test_two_hundred_streams_reserve_one_page():
    pool = StatePool()
    page = pool.take(SLOTS, CPU)
    reserved = pool.reserved_bytes
    assert reserved == len(page.storage) == 3 * ALIGNMENT
    for _ in range(200):
        page.tensors[0].fill_(5)
        del page
        page = pool.take(SLOTS, CPU)
        assert not page.tensors[0].any()
        assert pool.reserved_bytes == reserved


def test_two_hundred_streams_of_a_network_reserve_one_page():
    model, pool = toys.networks()[0], StatePool()
    passes, reserved = Passes(model), set()
    for seed in range(200):
        run = Run(passes, StreamOptions(steps=1), seed=seed, pool=pool)
        run.chunk()
        del run
        reserved.add(pool.reserved_bytes)
    assert len(reserved) == 1 and reserved.pop() > 0


def test_pages_in_use_are_never_handed_out_again():
    pool = StatePool()
    pages = [pool.take(SLOTS, CPU) for _ in range(4)]
    assert len({page.storage.data_ptr() for page in pages}) == 4
    assert pool.reserved_bytes == 4 * len(pages[0].storage)
    del pages[1]
    gc.collect()
    pages.append(pool.take(SLOTS, CPU))
    assert len({page.storage.data_ptr() for page in pages}) == 4


@pytest.mark.parametrize("held", [0, 2])
def test_trim_lets_go_of_free_pages_alone(held):
    pool = StatePool()
    pages = [pool.take(SLOTS, CPU) for _ in range(5)]
    size = len(pages[0].storage)
    del pages[held:]
    pool.trim()
    assert pool.reserved_bytes == held * size
