"""A workflow in ComfyUI's API format: where the clip, the prompt and the seed go."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError

# Inputs of node classes that take a clip from the server's input folder, and the edit's prompt.
VIDEO_INPUTS = {"LoadVideo": "file", "VHS_LoadVideo": "video", "VHS_LoadVideoFFmpeg": "video"}
PROMPT_INPUTS = {"SanaStreamingPrompt": "prompt"}
# The node to put in where there is none, and what it takes.
TITLES = {"--video-input": ("Load Video", "clip"), "--prompt-input": ("SANA-Streaming Prompt", "prompt")}
SEED_INPUTS = ("seed", "noise_seed")
MAX_SEED = 2**64 - 1

Graph = dict[str, dict[str, Any]]


class Place(NamedTuple):
    """An input of a node."""

    node: str
    name: str

    def __str__(self) -> str:
        return f"{self.node}.{self.name}"


@dataclass(frozen=True)
class Workflow:
    """A graph with two places to fill.

    graph: the nodes by id, with the seed that was asked for. video, prompt: the places.
    """

    graph: Graph
    video: Place
    prompt: Place

    def filled(self, video: str, prompt: str) -> Graph:
        """A graph to queue; ``video`` is the clip's name in the server's input folder."""
        graph = copy.deepcopy(self.graph)
        graph[self.video.node]["inputs"][self.video.name] = video
        graph[self.prompt.node]["inputs"][self.prompt.name] = prompt
        return graph

    def classes(self) -> list[str]:
        """Names of the node classes that a server must have."""
        return sorted({node["class_type"] for node in self.graph.values()})

    def fingerprint(self) -> str:
        """Equal for workflows that make the same of a clip and a prompt."""
        content = [self.filled("", ""), self.video, self.prompt]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_workflow(file: Path, video: str | None, prompt: str | None, seed: int | None) -> Workflow:
    """Reads a workflow.

    Args:
        file: JSON as ComfyUI exports it for its API.
        video, prompt: ``NODE.INPUT``; None finds them by the node classes in VIDEO_INPUTS and PROMPT_INPUTS.
        seed: written into every seed of the workflow, 0 to 2**64 - 1; None leaves them.

    Raises InputError for a file of another kind, and where a place is not there or not the only one.
    """
    graph = _read(file)
    video_place = _place(graph, video, "--video-input", VIDEO_INPUTS)
    prompt_place = _place(graph, prompt, "--prompt-input", PROMPT_INPUTS)
    if video_place == prompt_place:
        raise InputError(f"--video-input and --prompt-input are both {video_place}; give each its own")
    if seed is not None:
        _set_seed(graph, seed, file)
    return Workflow(graph, video_place, prompt_place)


def _read(file: Path) -> Graph:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give a workflow in API format") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); export it in ComfyUI: Workflow > Export (API)") from error
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        raise InputError(
            f"{file} is a workflow as the page saves it; the API needs the other format: Workflow > Export (API) in ComfyUI"
        )
    if not isinstance(content, dict) or not content or not all(_is_node(node) for node in content.values()):
        raise InputError(f"{file} is not a workflow in API format; export it in ComfyUI: Workflow > Export (API)")
    return content


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _place(graph: Graph, given: str | None, option: str, known: dict[str, str]) -> Place:
    if given is not None:
        place = Place(*given.partition(".")[::2])
    else:
        found = [Place(key, known[n["class_type"]]) for key, n in graph.items() if n["class_type"] in known]
        if not found:
            title, content = TITLES[option]
            raise InputError(
                f"the workflow has no node {' or '.join(known)}; say where with {option} NODE.INPUT; "
                f"if it takes no {content}, put a {title} node in"
            )
        if len(found) > 1:
            raise InputError(
                f"the workflow has {len(found)} places: {', '.join(map(str, found))}; choose with {option}"
            )
        place = found[0]
    _check_place(graph, place, option)
    return place


def _check_place(graph: Graph, place: Place, option: str) -> None:
    inputs = graph.get(place.node, {}).get("inputs", {})
    if place.name not in inputs:
        texts = [str(Place(key, name)) for key, node in graph.items() for name, v in node["inputs"].items() if _text(v)]
        raise InputError(
            f"{option}: the workflow has no input {place}; it has {', '.join(texts) or 'none with a text'}"
        )
    value = inputs[place.name]
    if isinstance(value, list):
        raise InputError(f"{place} comes from node {value[0]}; name an input of that node with {option}")
    if not _text(value):
        raise InputError(f"{option} {place} is {value!r}, not a text; name an input that holds one")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _set_seed(graph: Graph, seed: int, file: Path) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"--seed {seed} is out of range; use 0 to {MAX_SEED}")
    count = 0
    for node in graph.values():
        for name in SEED_INPUTS:
            if isinstance(node["inputs"].get(name), int):
                node["inputs"][name] = seed
                count += 1
    if not count:
        raise InputError(f"--seed: no node of {file} has a seed; leave the option out")
