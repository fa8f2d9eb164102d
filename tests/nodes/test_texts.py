"""What users read: help pages and translations, complete for every node."""

import json
import re
import runpy
from pathlib import Path

import pytest
import sana_streaming

ROOT = Path(__file__).parents[2]
PAGES = ROOT / sana_streaming.WEB_DIRECTORY / "docs"
WRITER = runpy.run_path(str(ROOT / "docs" / "write_locales.py"))
schemas, definitions, LANGUAGES = WRITER["schemas"], WRITER["definitions"], WRITER["LANGUAGES"]
TRANSLATED = [language for language in LANGUAGES if language != "en"]
SECTIONS = ["Inputs", "Outputs", "Example", "Common mistakes"]
# Names that are written alike in every language.
NAMES = set(
    re.findall(
        r"\S+",
        "SANA-Streaming ComfyUI LTX LoRA lora VAE CPU GPU NVIDIA Hopper RTX Gemma Transformer Hugging Face CLIP pixeldit "
        "diffusers softmax Python CUDA delta nano GB MB dB SN",
    )
)


def test_every_node_has_a_help_page_and_nothing_else_has():
    assert {path.name for path in PAGES.iterdir()} == {f"{schema.node_id}.md" for schema in schemas()}


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_a_help_page_explains_every_input_and_output(path):
    (schema,) = (schema for schema in schemas() if schema.node_id == path.stem)
    text = path.read_text(encoding="utf-8")
    heading, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    assert heading.splitlines()[0] == f"# {schema.display_name}"
    assert heading.splitlines()[2].endswith(".")
    sections = {part.split("\n")[0]: part for part in parts}
    assert list(sections) == SECTIONS
    rows = {name: re.findall(r"^\* `(\w+)`: \S.*\.$", sections[name], re.MULTILINE) for name in SECTIONS}
    assert sorted(rows["Inputs"]) == sorted(slot.id for slot in schema.inputs)
    assert rows["Outputs"] == [slot.fields["display_name"] for slot in schema.outputs]
    assert re.search(r"^\* \S.*", sections["Common mistakes"], re.MULTILINE)
    assert len(text.split()) < 800, "short, so that it is read"


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_those_of_the_schemas(language):
    """``python docs/write_locales.py`` writes them anew."""
    expected, phrases = definitions(language)
    assert phrases.missing == []
    assert phrases.unused == []
    path = ROOT / "locales" / language / "nodeDefs.json"
    assert json.loads(path.read_text(encoding="utf-8")) == expected


def leaves(value, place=()):
    """(keys on the way, text) of every text."""
    if isinstance(value, str):
        yield place, value
    else:
        for key, below in value.items():
            yield from leaves(below, (*place, key))


def words_left(text):
    """Latin words, without what is a value, a file, a number or a name of the code."""
    text = re.sub(r"'[^']*'", " ", text)
    return set(re.findall(r"(?<![\w./*+:-])[A-Za-z][A-Za-z-]+(?![\w./-])", text, re.ASCII))


def options():
    """Every value that a combo offers."""
    return {str(value) for schema in schemas() for slot in schema.inputs for value in slot.fields.get("options") or ()}


@pytest.mark.parametrize("language", TRANSLATED)
def test_nothing_is_left_in_english(language):
    content, _ = definitions(language)
    english = dict(leaves(definitions("en")[0]))
    allowed = NAMES | options()
    for place, text in leaves(content):
        assert text.strip(), place
        if english[place] not in NAMES | {"vae"}:
            assert re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", text), (place, text)
        left = words_left(text) - allowed
        assert not left, (place, left)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_means_something_else_to_the_page(language):
    """The page's translator reads braces, bars and at signs as its own syntax."""
    for place, text in leaves(definitions(language)[0]):
        assert not set(text) & set("{}|@"), (place, text)
