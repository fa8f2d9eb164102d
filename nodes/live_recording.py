"""A live source, edited while it happens, shown on the node and written to ComfyUI's output folder."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from comfy_api.latest import io

from ..sana_core.errors import InputError
from ..sana_core.live.address import SourceAddress, TargetAddress
from ..sana_core.live.compare import Compare
from ..sana_core.live.control import Command
from ..sana_core.live.player import EditedFrame
from ..sana_core.live.prompts import LivePrompts
from ..sana_core.live.session import LiveSession, LiveSettings
from ..sana_core.live.sink import Sink, open_sink
from ..sana_core.live.source import LostError
from ..sana_core.live.trial import try_out
from ..sana_core.streaming.edit_stream import EditStream, Progress
from ..sana_core.streaming.options import StreamOptions
from ..sana_core.streaming.passes import Passes
from . import comfy_host
from .editor import Editor
from .graphs import passes_of
from .live import live_report_text, live_text
from .live_source import TimedSource

logger = logging.getLogger(__name__)

PREFIX = "sana_streaming/live"
# Between two pictures, and two lines of words, on the node.
LOOK_SECONDS = 0.5
# Of a bar that counts time.
PER_SECOND = 10


@dataclass(frozen=True)
class LiveJob:
    """What to record, and how. seconds: 0 until Stop. beside: whether the node shows the source beside the edit."""

    address: SourceAddress
    seconds: float
    crf: int
    compare: Compare
    beside: bool
    cuda_graph: bool


def record(node: type[io.ComfyNode], editor: Editor, job: LiveJob) -> tuple[Path, str]:
    """Edits the source until its time is over, it has ended, or the user presses Stop; the file, and what happened.

    Raises ComfyUI's own exception after Stop, and InputError or OSError for a source or a file that fails; what was written
    by then plays, and the node says where it is. Nothing of the run is left.
    """
    editor.load(editor.plan(None))
    with passes_of(editor.model, job.cuda_graph) as passes:
        return _Recording(node, editor, job, passes).run()


class _Recording:
    """One run.

    ComfyUI is spoken to in the thread of the node alone: which node it is, and who is told of Stop, depends on the thread.
    """

    def __init__(self, node: type[io.ComfyNode], editor: Editor, job: LiveJob, passes: Passes) -> None:
        self._node, self._editor, self._job, self._passes = node, editor, job, passes
        self._source = TimedSource(job.address, job.seconds)
        self._streams: list[EditStream] = []
        self._path: Path | None = None
        self._name = ""
        self._stopped = False
        self._ended = ""
        self._shown: EditedFrame | None = None
        self._next_look = 0.0
        # Units of the chunk in the making that are done.
        self._units = 0
        # Prompts to come; by the clock, because frames may be left out.
        self._later = deque(editor.prompts.changes.changes)
        self._total = math.ceil(PER_SECOND * job.seconds) or editor.options.passes(carry=True) + 2
        self._bar = comfy_host.ProgressReport(self._total)
        self._prompts = LivePrompts(editor.prompts.encoder())
        self._session = LiveSession(
            self._source,
            LiveSettings(editor.prompts.text, editor.options, "drop", job.compare, lambda *source: editor.size),
            self._prompts,
            self._make_stream,
            self._make_sink,
            on_shown=self._keep,
            should_stop=self._look,
        )

    def run(self) -> tuple[Path, str]:
        """As :func:`record`."""
        try:
            self._edit()
            self._check_file()
        except BaseException:
            self._say_where()
            raise
        finally:
            for stream in self._streams:
                stream.state.release()
        assert self._path is not None
        report = self._session.report()
        return self._path, live_report_text(report, self._session.state().memory, self._ended, self._name)

    def _edit(self) -> None:
        comfy_host.show_text(self._node, "trying out the model, then the source is opened", log=False)
        trial = self._make_stream(
            *self._editor.size,
            self._editor.options,
            self._editor.prompts.text,
            self._prompts,
            lambda progress: comfy_host.check_interrupt(),
        )
        self._session.stats.expect(try_out(trial))
        trial.state.release()
        try:
            self._session.run()
        except LostError as lost:
            # So a sender ends that nobody has told how long to send.
            self._ended = str(lost)
        if self._stopped:
            raise comfy_host.Interrupted

    def _check_file(self) -> None:
        """InputError where nothing was recorded."""
        if not self._session.stats.frames_out:
            raise InputError(f"{self._job.address.text} {self._ended or 'gave no frames'}; {TimedSource.ADVICE}")

    def _say_where(self) -> None:
        """Says where the frames are that were written; a file without any goes."""
        count = self._session.stats.frames_out
        if self._path is not None and not count:
            self._path.unlink(missing_ok=True)
        elif self._path is not None:
            comfy_host.show_text(self._node, f"stopped; {count} frames are recorded in {self._name}")
            logger.info("SANA-Streaming: that is %s", self._path)

    # What the session asks for.

    def _make_stream(
        self,
        height: int,
        width: int,
        options: StreamOptions,
        prompt: str,
        prompts: LivePrompts,
        on_progress: Callable[[Progress], None],
    ) -> EditStream:
        def count(progress: Progress) -> None:
            self._units = progress.number
            on_progress(progress)

        stream = self._editor.stream(prompts, None, self._passes, count, prompt=prompt)
        self._streams.append(stream)
        return stream

    def _make_sink(self, height: int, width: int, rate: Fraction, has_sound: bool) -> Sink:
        self._path, listed = comfy_host.output_file(PREFIX, ".mp4")
        self._name = "/".join(filter(None, ("output", listed["subfolder"], listed["filename"])))
        target = TargetAddress(str(self._path))
        return open_sink(target, height=height, width=width, rate=rate, has_sound=has_sound, crf=self._job.crf)

    def _keep(self, frame: EditedFrame) -> None:
        """In the thread that writes."""
        self._shown = frame

    def _look(self) -> bool:
        """Whether to stop. Asked again and again in the thread of the node, so this is where it shows what there is."""
        if not self._stopped:
            try:
                self._tell()
            except comfy_host.Interrupted:
                # Raised again when the file is closed.
                self._stopped = True
        return self._stopped

    def _tell(self) -> None:
        elapsed = self._source.elapsed
        self._bar.reached(min(self._total, int(PER_SECOND * elapsed)) if self._job.seconds else self._units)
        if self._source.began is not None and not self._source.stopped:
            while self._later and self._later[0][0] <= elapsed:
                self._session.submit(Command("set", prompt=self._later.popleft()[1]))
        if self._source.is_overdue:
            self._source.stop()
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self._show(elapsed)

    def _show(self, elapsed: float) -> None:
        text = live_text(self._session.state(), elapsed, self._job.seconds)
        comfy_host.show_text(self._node, text, log=False)
        frame, self._shown = self._shown, None
        if frame is not None:
            beside = self._job.beside or self._job.compare != "off"
            self._bar.preview(torch.cat([frame.source_picture(), frame.picture], 1) if beside else frame.picture)
