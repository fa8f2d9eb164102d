"""A batch of the ``queue`` command in a folder of its own."""

import csv
import json

from sana_streaming.sana_core.cli import main

GRAPH = {
    "4": {"class_type": "SanaStreamingPrompt", "inputs": {"prompt": "of the file", "negative_prompt": ""}},
    "5": {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}},
    "6": {"class_type": "SanaStreamingEditVideo", "inputs": {"positive": ["4", 0], "video": ["5", 0], "seed": 3}},
    "7": {"class_type": "SaveVideo", "inputs": {"video": ["6", 0]}},
}


class Work:
    """A batch in a folder of its own."""

    def __init__(self, folder, clips=2, prompts=("make it night", "make it snow", "sepia")):
        self.folder, self.out = folder, folder / "out"
        (folder / "clips").mkdir()
        for number in range(clips):
            (folder / f"clips/clip{number}.mp4").write_bytes(b"frames %d" % number)
        self.workflow = folder / "workflow.json"
        self.workflow.write_text(json.dumps(GRAPH))
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text("\n".join(prompts))
        self.names = [(f"clip{number}.mp4", prompt) for number in range(clips) for prompt in prompts]

    def run(self, *servers, options=()):
        urls = [word for it in servers for word in ("--server", it if isinstance(it, str) else it.url)]
        words = [
            self.workflow,
            "--video-dir",
            self.folder / "clips",
            "--prompts",
            self.prompts,
            "--output-dir",
            self.out,
        ]
        return main(["queue", *map(str, words), *urls, *options])

    def rows(self):
        with (self.out / "results.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    def events(self):
        return [json.loads(line) for line in (self.out / "results.journal.jsonl").read_text().splitlines()]

    def check_results(self):
        """Every job is done, and its file is the edit of its clip by its prompt."""
        rows = self.rows()
        assert [(row["clip"], row["prompt"]) for row in rows] == self.names
        for row in rows:
            assert row["status"] == "done", row
            content = (self.folder / "clips" / row["clip"]).read_bytes() + b"|" + row["prompt"].encode()
            assert (self.out / row["output"]).read_bytes() == content
        done = [(event["clip"], event["prompt"]) for event in self.events() if event["event"] == "done"]
        assert sorted(done) == sorted(self.names)
        assert not list(self.out.glob("*.part"))
