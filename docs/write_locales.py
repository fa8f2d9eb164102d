"""Writes locales/*/nodeDefs.json, which ComfyUI shows, from the nodes' schemas: ``python docs/write_locales.py``.

English is what the schemas say. The other languages come from docs/translations: ``names`` of nodes, inputs and outputs, and
``texts`` of descriptions and tooltips, both by the English one, so a text that changes asks for a new translation.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCALES, TRANSLATIONS = ROOT / "locales", ROOT / "docs" / "translations"
LANGUAGES = ("en", *sorted(path.stem for path in TRANSLATIONS.glob("*.json")))


class Phrases:
    """Translations of one language; English without a file. Notes what is ``missing`` and what was ``used``."""

    def __init__(self, language: str) -> None:
        path = TRANSLATIONS / f"{language}.json"
        self.known: dict[str, dict[str, str]] | None = None
        if language != "en":
            self.known = json.loads(path.read_text(encoding="utf-8"))
        self.missing: list[tuple[str, str]] = []
        self.used: set[tuple[str, str]] = set()

    def __call__(self, kind: str, english: str) -> str:
        """The translation of a text of ``kind`` names or texts; the text itself where there is none."""
        self.used.add((kind, english))
        if self.known is None:
            return english
        if english not in self.known[kind]:
            self.missing.append((kind, english))
        return self.known[kind].get(english, english)

    @property
    def unused(self) -> list[tuple[str, str]]:
        """Translations of what no schema says."""
        every = {(kind, english) for kind, texts in (self.known or {}).items() for english in texts}
        return sorted(every - self.used)


def schemas() -> list[Any]:
    """Of every node, in the order of registration; needs ComfyUI or its stand-ins on sys.path."""
    from sana_streaming import comfy_entrypoint

    extension = asyncio.run(comfy_entrypoint())
    asyncio.run(extension.on_load())
    return [node.define_schema() for node in asyncio.run(extension.get_node_list())]


def node_definitions(schema: Any, phrases: Phrases) -> dict[str, Any]:
    """One node's entry of nodeDefs.json."""
    inputs = {
        slot.id: {
            "name": phrases("names", slot.fields.get("display_name") or slot.id),
            "tooltip": phrases("texts", slot.fields["tooltip"]),
        }
        for slot in schema.inputs
    }
    outputs = {}
    for number, slot in enumerate(schema.outputs):
        outputs[str(number)] = {"name": phrases("names", slot.fields["display_name"])}
        if slot.fields.get("tooltip"):
            outputs[str(number)]["tooltip"] = phrases("texts", slot.fields["tooltip"])
    return {
        "display_name": phrases("names", schema.display_name),
        "description": phrases("texts", schema.description),
        "inputs": inputs,
        "outputs": outputs,
    }


def definitions(language: str) -> tuple[dict[str, Any], Phrases]:
    """The whole of nodeDefs.json, and the phrases that it was made with."""
    phrases = Phrases(language)
    return {schema.node_id: node_definitions(schema, phrases) for schema in schemas()}, phrases


def main() -> int:
    sys.path.insert(0, str(ROOT / "tests" / "comfy_standin"))
    import folder_paths

    wanting = 0
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.reset(Path(folder))
        for language in LANGUAGES:
            content, phrases = definitions(language)
            path = LOCALES / language / "nodeDefs.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            for kind, english in dict.fromkeys(phrases.missing):
                print(f"{language}: {kind} lack {english!r}")
            for kind, english in phrases.unused:
                print(f"{language}: {kind} have what no node says: {english!r}")
            wanting += len(phrases.missing) + len(phrases.unused)
    return 1 if wanting else 0


if __name__ == "__main__":
    sys.exit(main())
