"""The part of the V3 API that the nodes use."""

from dataclasses import dataclass, field
from fractions import Fraction
from types import SimpleNamespace


class ComfyExtension:
    async def on_load(self):
        pass


class _Slot:
    def __init__(self, kind, id=None, **fields):
        self.io_type, self.id, self.fields = kind, id, fields


def _kind(name):
    class Kind:
        io_type = name

        class Input(_Slot):
            def __init__(
                self,
                id,
                display_name=None,
                optional=False,
                tooltip=None,
                default=None,
                min=None,
                max=None,
                step=None,
                options=None,
                multiline=False,
                placeholder=None,
                dynamic_prompts=None,
                control_after_generate=None,
                advanced=None,
            ):
                given = {key: value for key, value in locals().items() if key not in ("self", "id", "__class__")}
                super().__init__(name, id, **given)
                self.optional = optional

        class Output(_Slot):
            def __init__(self, id=None, display_name=None, tooltip=None):
                super().__init__(name, id, display_name=display_name, tooltip=tooltip)

    return Kind


class MultiType:
    class Input(_Slot):
        def __init__(self, id, types, display_name=None, optional=False, tooltip=None, advanced=None):
            super().__init__(",".join(kind.io_type for kind in types), id, tooltip=tooltip, advanced=advanced)
            self.optional = optional


@dataclass
class Schema:
    node_id: str
    display_name: str = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    description: str = ""
    search_aliases: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    is_output_node: bool = False


class NodeOutput:
    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui


class ComfyNode:
    # ComfyUI runs a copy of the class that knows its number.
    hidden = SimpleNamespace(unique_id="7")


io = SimpleNamespace(
    Hidden=SimpleNamespace(unique_id="UNIQUE_ID"),
    ComfyNode=ComfyNode,
    Schema=Schema,
    NodeOutput=NodeOutput,
    Custom=_kind,
    MultiType=MultiType,
    Combo=_kind("COMBO"),
    Int=_kind("INT"),
    Float=_kind("FLOAT"),
    Boolean=_kind("BOOLEAN"),
    String=_kind("STRING"),
    Conditioning=_kind("CONDITIONING"),
    Latent=_kind("LATENT"),
    Image=_kind("IMAGE"),
    Video=_kind("VIDEO"),
    Audio=_kind("AUDIO"),
    Mask=_kind("MASK"),
    Clip=_kind("CLIP"),
)


class VideoFromFile:
    def __init__(self, file, *, start_time=0.0, duration=0.0):
        self.file, self.window = file, (start_time, duration)

    def get_stream_source(self):
        return self.file

    def get_active_trim_window(self):
        return self.window


class VideoFromComponents:
    def __init__(self, components):
        self.components = components

    def get_components(self):
        return self.components

    def get_stream_source(self):
        raise AssertionError("asked a video made of pictures to encode itself")


@dataclass
class VideoComponents:
    images: object
    frame_rate: Fraction
    audio: object = None


InputImpl = SimpleNamespace(VideoFromFile=VideoFromFile, VideoFromComponents=VideoFromComponents)
Types = SimpleNamespace(VideoComponents=VideoComponents)
