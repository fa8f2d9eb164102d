"""``live``: a camera or a network stream goes in, the edit comes out while it happens."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch

from ..live.control import LiveState
from ..live.json_lines import JsonLines
from ..live.preview import Preview
from ..live.report import draw_plot
from ..live.session import LiveSession, MakeStream
from ..live.sink import Sink, open_sink
from ..live.source import LiveSource
from ..live.trial import try_out
from .edit_networks import print_nano, random_preset, uses_nano
from .edit_progress import GracefulStop
from .live_plan import LivePlan, load_networks, make_plan, stream_maker


def run(options: argparse.Namespace) -> int:
    from ..cli import EXIT_OK, EXIT_STOPPED

    plan = make_plan(options)
    # Standard output may carry pictures or states.
    say = _say(sys.stderr)
    model, vae, prompts, weights = load_networks(options, plan)
    with contextlib.redirect_stdout(sys.stderr):
        if uses_nano(options):
            print_nano()
        elif options.random_weights:
            say(f"model: {random_preset(options)} of random weights")
    make_stream = stream_maker(plan, model, vae)
    preview = Preview()
    lines = JsonLines(sys.stderr if plan.target and plan.target.is_standard else sys.stdout)
    with GracefulStop() as stop:
        session = LiveSession(
            LiveSource(plan.source, reconnect=plan.reconnect, hold=plan.settings.late == "wait"),
            plan.settings,
            prompts,
            make_stream,
            _sink_maker(options, plan),
            on_state=lambda state: tell(state),
            on_shown=preview.offer,
            should_stop=lambda: stop.requested,
        )
        tell = _Teller(say, lines.write if options.stdin_control else None, session)
        _try_out(session, plan, make_stream, prompts)
        if options.stdin_control:
            lines.listen(session)

        def summarise() -> dict[str, Any]:
            return _summary(session, plan, weights, stop.requested)

        with _server(plan, session, preview, say), _reported_at_the_end(options, say, summarise):
            session.run()
    return EXIT_STOPPED if stop.requested else EXIT_OK


def _say(stream: Any) -> Callable[[str], None]:
    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    return say


class _Teller:
    """Tells people what happens, and programs all of it."""

    def __init__(
        self, say: Callable[[str], None], write: Callable[[dict[str, Any]], None] | None, session: LiveSession
    ) -> None:
        self._say, self._write, self._session = say, write, session
        self._before: tuple[str, str] = ("", "")
        self._bound: float | None = None

    def __call__(self, state: LiveState) -> None:
        if self._write is not None:
            self._write(state.to_dict())
        now = (state.status, state.text)
        if now != self._before:
            self._before = now
            self._say(f"{state.status}{': ' if state.text else ''}{state.text}")
        bound = self._session.bound
        if bound is not None and (self._bound is None or abs(bound - self._bound) > 0.1 * self._bound):
            self._bound = bound
            self._say(
                f"latency: at most {bound:.2f} s from capture to output; {state.first_frames} frames fill the first chunk, "
                f"{state.chunk_frames} every other, and then they are edited"
            )


def _sink_maker(options: argparse.Namespace, plan: LivePlan) -> Callable[[int, int, Fraction, bool], Sink]:
    def make(height: int, width: int, rate: Fraction, has_sound: bool) -> Sink:
        return open_sink(plan.target, height=height, width=width, rate=rate, has_sound=has_sound, crf=options.crf)

    return make


def _try_out(session: LiveSession, plan: LivePlan, make_stream: MakeStream, prompts: Any) -> None:
    """Edits two chunks of nothing: what is slow for the first time is done, and it is known how long a chunk takes."""
    settings = plan.settings
    # A size that follows the source is not known yet; all that it may be are about as large.
    height, width = settings.size(720, 1280)
    stream = make_stream(height, width, settings.options, settings.prompt, prompts, lambda progress: None)
    session.stats.expect(try_out(stream))
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)


@contextlib.contextmanager
def _server(plan: LivePlan, session: LiveSession, preview: Preview, say: Callable[[str], None]) -> Iterator[None]:
    if plan.access is None:
        yield
        return
    from ..live.server import ControlServer

    with ControlServer(session, preview, plan.access) as server:
        say(f"control: {server.url}")
        yield


def _summary(session: LiveSession, plan: LivePlan, weights: dict[str, str], stopped: bool) -> dict[str, Any]:
    report = session.report()
    report["output"]["address"] = plan.target and plan.target.text
    return {
        **report,
        "stopped": stopped,
        "weights": weights,
        "device": torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else "cpu",
        "dtype": str(plan.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


@contextlib.contextmanager
def _reported_at_the_end(
    options: argparse.Namespace, say: Callable[[str], None], summarise: Callable[[], dict[str, Any]]
) -> Iterator[None]:
    """Says and writes what happened, also after an error, which a report that cannot be written does not replace."""
    try:
        yield
    except BaseException:
        summary = summarise()
        say(_in_words(summary))
        try:
            _write_reports(options, summary)
        except OSError as error:
            say(f"the report could not be written: {error}")
        raise
    summary = summarise()
    say(_in_words(summary))
    _write_reports(options, summary)


def _write_reports(options: argparse.Namespace, summary: dict[str, Any]) -> None:
    if options.report:
        options.report.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        draw_plot(options.plot, summary)


def _in_words(summary: dict[str, Any]) -> str:
    frames, latency = summary["frames"], summary["latency"]
    dropped = ", ".join(f"{count} {cause}" for cause, count in frames["dropped"].items()) or "none"
    lines = [
        f"{frames['in']} frames in, {frames['out']} out in {summary['seconds']:.1f} s",
        f"  dropped    {dropped}; repeated {frames['repeated']}",
    ]
    if latency["max"] is not None:
        lines.append(
            f"  latency    p50 {latency['p50']:.2f} s, p95 {latency['p95']:.2f} s, max {latency['max']:.2f} s, "
            f"bound {latency['bound']:.2f} s"
        )
    if (rate := summary["frames_per_second_of_compute"]) is not None:
        lines.append(f"  speed      {rate:.1f} frames per second can be edited")
    memory = summary["memory"]
    lines.append(
        f"  memory     {memory['resident_first'] / 2**20:.0f} MiB at first, {memory['resident_last'] / 2**20:.0f} at last, "
        f"{memory['resident_most'] / 2**20:.0f} at most"
    )
    return "\n".join(lines)
