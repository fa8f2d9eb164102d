"""On the CPU a lane does its work at once; nothing is copied, and the clock counts what is inside."""

import pytest
import torch
from sana_streaming.sana_core.streaming.lanes import HostCopy, Lane, Mark, StageClock, hand_over, to_device

CPU = torch.device("cpu")


def test_lanes_of_the_cpu_are_one():
    main, side = Lane("cpu"), Lane.side("cpu", "decode")
    assert not main.is_beside(side)
    tensor = torch.arange(3)
    assert hand_over(tensor, main, side) is tensor
    with side.work():
        side.uses(tensor)
        side.wait(main.mark())
    assert side.mark() == Mark()
    side.mark().wait()


def test_nothing_is_copied_that_is_there_already():
    tensor = torch.arange(3)
    assert to_device(tensor, CPU) is tensor
    copy = HostCopy.of(tensor, Lane("cpu"))
    assert copy.wait() is tensor


def test_the_clock_adds_up_by_stage(monkeypatch):
    now = iter([0.0, 1.0, 5.0, 5.5, 10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock, lane = StageClock(), Lane("cpu")
    with clock.timed("encode", lane):
        pass
    with clock.timed("decode", lane):
        pass
    # What fails took time too.
    with pytest.raises(OSError), clock.timed("encode", lane):
        raise OSError
    assert clock.read() == {"encode": 3.0, "decode": 0.5}
    assert clock.calls == {"encode": 2, "decode": 1}
