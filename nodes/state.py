"""A stream put away and taken up again: SanaStreamingSaveState, SanaStreamingLoadState."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..sana_core.streaming.state import StreamState
from . import comfy_host
from .loaders import stamp
from .sockets import State

CATEGORY = f"{comfy_host.CATEGORY}/state"
SUFFIX = ".safetensors"
WHAT = "stream state"


def state_text(state: StreamState) -> str:
    """Where a stream stands, in words."""
    settings = state.settings
    total = "" if settings.total_frames is None else f" of {settings.total_frames}"
    waiting = f", {state.num_waiting} of them wait for their chunk to fill" if state.num_waiting else ""
    end = "; the stream has ended, nothing can follow" if state.finished else ""
    return f"{state.frames_in}{total} frames at {settings.width}x{settings.height} taken in{waiting}{end}"


class SanaStreamingSaveState(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingSaveState",
            display_name="Save SANA-Streaming State",
            category=CATEGORY,
            description="Writes a stream's state to a file in ComfyUI's output folder, to go on after a restart. Its size does "
            "not grow with the length of the stream.",
            search_aliases=["sana", "save state", "checkpoint", "pause", "resume", "continue"],
            inputs=[
                State.Input(
                    "state",
                    tooltip="From the last node of a part's chain, usually SANA-Streaming Decode Video: a state that went "
                    "through all three nodes holds what all three need.",
                ),
                comfy_host.widget(
                    io.String,
                    "filename_prefix",
                    default="sana_streaming/state",
                    tooltip="Begin of the file's name, in the output folder; a folder may stand before it. A number follows.",
                ),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[State.Output(display_name="state")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, state: StreamState, filename_prefix: str) -> io.NodeOutput:
        path, listed = comfy_host.output_file(filename_prefix, SUFFIX)
        state.save(path)
        comfy_host.show_text(cls, f"{path.name}: {state_text(state)}")
        return io.NodeOutput(state, ui={"sana_states": [listed]})


class SanaStreamingLoadState(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingLoadState",
            display_name="Load SANA-Streaming State",
            category=CATEGORY,
            description="Reads a stream's state from a file, to go on where it stopped: with the same networks and settings "
            "the frames are those of a run without a break.",
            search_aliases=["sana", "load state", "resume", "continue", "append"],
            inputs=[
                comfy_host.widget(
                    io.Combo,
                    "file",
                    options=comfy_host.saved_files(SUFFIX),
                    tooltip="From ComfyUI's input folder, or as Save SANA-Streaming State wrote it to the output folder. "
                    "Connect the state to SANA-Streaming Encode Video, and give the next part there.",
                ),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[State.Output(display_name="state")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return file is None or comfy_host.answer(lambda: _path(file))

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> Any:
        return None if file is None else stamp(_path(file))

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        state = StreamState.load(_path(file))
        comfy_host.show_text(cls, state_text(state))
        return io.NodeOutput(state.to(comfy_host.result_device()))


def _path(file: str) -> Path:
    return comfy_host.resolve_saved(file, WHAT)
