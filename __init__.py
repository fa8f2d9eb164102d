"""SANA-Streaming: text-driven video editing as a stream.

Nothing is imported here: ComfyUI loads this file by path under a generated name, and the parts load when they are used.
The library is ``sana_streaming.sana_core``, the command line ``python -m sana_streaming``.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # type: ignore[no-untyped-def]
    """What ComfyUI calls to get the nodes."""
    from .nodes import SanaStreamingExtension

    return SanaStreamingExtension()
