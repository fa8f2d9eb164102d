"""Sound laid out anew: no holes, no overlaps, every sample at its time."""

import numpy as np
import pytest
from sana_streaming.sana_core.live.sound import LONGEST_SECONDS, RATE, SoundBlock, SoundBuffer, SoundTrack


def block(length, value=1.0):
    return np.full((2, length), value, np.float32)


def placed(track, seconds, samples):
    pieces = list(track.place(seconds, samples))
    return np.concatenate(pieces, 1)[0] if pieces else np.zeros(0)


def test_blocks_follow_without_a_seam_where_stamps_are_rounded():
    track = SoundTrack()
    for index in range(10):
        assert len(placed(track, index * 1024 / RATE + 0.0007 * (-1) ** index + 0.001, block(1024))) == 1024
    assert track.num_samples == 10_240


def test_a_hole_is_silence_and_an_overlap_is_cut():
    track = SoundTrack()
    placed(track, 0.0, block(4800))
    late = placed(track, 3.0, block(4800))
    assert len(late) == 3 * RATE and not late[:-4800].any() and late[-4800:].all()
    assert len(placed(track, 3.0, block(4800))) == 0
    assert len(placed(track, 3.05, block(4800))) == 2400
    assert track.end == pytest.approx(3.15)


def test_the_buffer_gives_what_is_due_and_holds_no_more_than_it_may():
    buffer = SoundBuffer()
    for second in range(300):
        buffer.add(SoundBlock(float(second), block(1)))
    taken = buffer.take_before(250.0)
    assert [each.time for each in taken] == [float(s) for s in range(299 - int(LONGEST_SECONDS), 250)]
    buffer.clear()
    assert buffer.take_before(1e9) == []
