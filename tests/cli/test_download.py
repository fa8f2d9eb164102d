"""``download`` in fresh processes, against a hub on this machine: what is shown, asked, fetched and refused."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import fake_hub
import pytest

RELEASE = "Efficient-Large-Model/SANA-Streaming"
MODEL, VAE, GEMMA = f"{RELEASE}/dit/sana_streaming_ar.pth", "Lightricks/LTX-2", "Efficient-Large-Model/gemma-2-2b-it"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def content(name, size=40_000):
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


@pytest.fixture
def hub():
    repos = {
        RELEASE: ["README.md", "dit/sana_streaming_ar.pth", "ltx2_causal_vae_0516/config.json"],
        f"{RELEASE}_bidirectional": ["dit/sana_bidirectional_short.pth"],
        VAE: ["ltx-2-19b-dev.safetensors", "vae/config.json", VAE_WEIGHTS],
        GEMMA: ["config.json", "model.safetensors", "tokenizer.json"],
    }
    with fake_hub.FakeHub(
        {repo: {name: content(repo + name) for name in names} for repo, names in repos.items()}
    ) as it:
        yield it


class Terminal:
    """``download`` run with a cache in ``home``; with ``answer`` its standard input is a terminal where that is typed."""

    def __init__(self, hub, home):
        self.hub, self.home = hub, home

    def start(self, *arguments, stdin=subprocess.DEVNULL, prelude="", **environment):
        code = f"{prelude}\nimport sys\nfrom sana_streaming.sana_core.cli import main\nsys.exit(main(sys.argv[1:]))"
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, "download", *map(str, arguments)],
            env=self.hub.environment(self.home) | environment,
            cwd=self.home.parent,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, answer=None, **options):
        if answer is None:
            process = self.start(*arguments, **options)
            return (*process.communicate(timeout=60), process.returncode)[::-1]
        keyboard, stdin = os.openpty()
        try:
            process = self.start(*arguments, stdin=stdin, **options)
            os.write(keyboard, answer.encode())
            return (*process.communicate(timeout=60), process.returncode)[::-1]
        finally:
            os.close(keyboard)
            os.close(stdin)

    def refused(self, *arguments, code=2, **options):
        """The last line of standard error."""
        done, err, out = self.run(*arguments, **options)
        assert (done, out) == (code, ""), err
        line = err.splitlines()[-1]
        assert line.startswith("error: ") and "Traceback" not in err
        return line


@pytest.fixture
def terminal(hub, tmp_path):
    return Terminal(hub, tmp_path / "home")


def test_everything_to_a_folder_and_only_once(hub, terminal, tmp_path):
    to = tmp_path / "my models"
    arguments = ("streaming-2b", "vae", "text-encoder", "--to", to, "--yes")
    code, err, out = terminal.run(*arguments)
    assert code == 0, err
    options = f"--model '{to}/dit/sana_streaming_ar.pth' --vae '{to}/vae' --text-encoder '{to}/text_encoder'"
    assert out == f"python -m sana_streaming edit IN OUT --prompt ... {options}\n"
    assert f"streaming-2b: hf://{MODEL}\n  to {to}\n  dit/sana_streaming_ar.pth     40.00 kB\n" in err
    assert f"text-encoder: hf://{GEMMA}\n  to {to}/text_encoder\n" in err
    assert re.search(r"240\.00 kB of 240\.00 kB to download, \d+\.\d\d GB free", err)
    assert len(hub.contents) == len(set(hub.contents)) == 6
    assert (to / "vae" / "config.json").read_bytes() == hub.repos[VAE]["vae/config.json"]

    code, err, again = terminal.run(*arguments[:-1])
    assert (code, again) == (0, out)
    assert "nothing to download: every file is there" in err and err.count("is there\n") >= 6
    assert len(hub.contents) == 6


def test_into_the_cache_as_json(hub, terminal):
    code, err, out = terminal.run("bidirectional-2b", f"hf://{RELEASE}@main/README.md", "--yes", "--json")
    assert code == 0, err
    said = json.loads(out)
    first, second = said["downloads"]
    assert first["path"].startswith(str(terminal.home)) and first["path"].endswith("dit/sana_bidirectional_short.pth")
    assert said["edit_options"] == ["--mode", "bidirectional_short", "--model", first["path"]]
    assert (first["name"], first["bytes"], first["commit"]) == ("bidirectional-2b", 40_000, fake_hub.COMMIT)
    assert second["fetched"] == second["files"] == ["README.md"]
    _, _, out = terminal.run("bidirectional-2b", "--json")
    assert json.loads(out)["downloads"][0] == {**first, "fetched": []}
    assert len(hub.contents) == 2


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal of POSIX")
class TestQuestion:
    @pytest.mark.parametrize("answer", ["n\n", "\n", "never\n", "\x04"])
    def test_no(self, hub, terminal, answer):
        code, err, out = terminal.run("vae", answer=answer)
        assert (code, out, hub.contents) == (1, "", [])
        assert f"Download 80.00 kB to {terminal.home / 'hub'}? [y/N] " in err and "nothing was downloaded" in err

    @pytest.mark.parametrize("answer", ["y\n", "Yes\n"])
    def test_yes(self, hub, terminal, answer):
        code, _, out = terminal.run("vae", answer=answer)
        assert code == 0 and out.startswith("python -m sana_streaming edit IN OUT --prompt ... --vae ")
        assert sorted(hub.contents) == ["vae/config.json", VAE_WEIGHTS]

    def test_only_what_is_missing_is_asked_for(self, hub, terminal):
        terminal.run(f"hf://{VAE}/vae/config.json", "--yes")
        _, err, _ = terminal.run("vae", answer="n\n")
        assert "40.00 kB of 80.00 kB to download" in err and "Download 40.00 kB" in err
        assert re.search(r"vae/config\.json +40\.00 kB  is there", err)

    def test_nobody_to_ask(self, hub, terminal):
        line = terminal.refused("vae")
        assert line == "error: 80.00 kB are to be downloaded and there is no terminal to ask at; add --yes"
        assert hub.contents == []


class TestRefusals:
    def test_offline(self, hub, terminal):
        terminal.run("vae", "--yes")
        asked = len(hub.requests)
        line = terminal.refused("vae", "--yes", HF_HUB_OFFLINE="1")
        assert line == "error: vae: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or use what is there"
        assert len(hub.requests) == asked

    def test_gated_before_anything_is_fetched(self, hub, terminal):
        hub.faults[GEMMA] = "gated"
        line = terminal.refused("streaming-2b", "text-encoder", "--yes")
        assert f"hf://{GEMMA}/config.json: the repository is gated; open {hub.endpoint}/{GEMMA}, accept its" in line
        assert "log in: run hf auth login, or set HF_TOKEN" in line
        assert hub.contents == []

    def test_not_logged_in(self, hub, terminal):
        hub.faults[GEMMA] = "unauthorized"
        assert "accept its licence if it has one, and log in" in terminal.refused("text-encoder", "--yes")

    def test_no_space_for_all_together(self, hub, terminal):
        few = "import shutil, collections\nshutil.disk_usage = lambda _: collections.namedtuple('U', 'free')(100_000)"
        line = terminal.refused("streaming-2b", "vae", "--yes", prelude=few)
        assert line.startswith("error: 120.00 kB are to be downloaded, 100.00 kB are free in")
        assert line.endswith("choose another disk with --to or HF_HOME") and hub.contents == []

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("streaming", "'streaming' is nothing to download; choose one of streaming-2b, bidirectional-2b, vae"),
            (f"hf://{RELEASE}/dit/typo.pth", "no such file or folder in the repository"),
            (f"hf://{VAE}", "is a whole repository; add the path"),
            ("hf://x", "is not an address"),
        ],
    )
    def test_names(self, hub, terminal, name, message):
        assert message in terminal.refused("vae", name, "--yes")
        assert hub.contents == []

    def test_a_file_that_went_away(self, hub, terminal):
        hub.faults[MODEL] = "missing"
        assert "there is no such file in the repository" in terminal.refused("streaming-2b", "--yes")

    def test_wrong_content_is_removed(self, hub, terminal, tmp_path):
        hub.faults[MODEL] = "other"
        line = terminal.refused("streaming-2b", "--yes", "--to", tmp_path / "to")
        assert "is not the file that it lists (sha256 or size differ) and was removed" in line
        assert not (tmp_path / "to" / "dit" / "sana_streaming_ar.pth").exists()

    def test_a_folder_that_is_a_file(self, hub, terminal, tmp_path):
        (tmp_path / "taken").write_text("")
        assert "--to taken is not a folder" in terminal.refused("vae", "--yes", "--to", "taken")
        assert hub.requests == []

    def test_no_library(self, hub, terminal):
        without = (
            "import importlib.util as util\nreal = util.find_spec\n"
            "util.find_spec = lambda name: None if name == 'huggingface_hub' else real(name)"
        )
        line = terminal.refused("vae", "--yes", prelude=without)
        assert line.endswith("downloads need a package that is not installed: pip install huggingface_hub")


def test_a_connection_cut_half_way(hub, terminal, tmp_path):
    """Lost for good: whole files stay, and the same command fetches the rest."""
    hub.faults[f"{VAE}/{VAE_WEIGHTS}"] = "cut"
    line = terminal.refused("vae", "--yes", "--to", tmp_path / "to")
    assert "failed or broke off" in line and "run it again, files that are whole are kept" in line
    hub.faults.clear()
    hub.requests.clear()
    code, err, _ = terminal.run("vae", "--yes", "--to", tmp_path / "to")
    assert code == 0 and "40.00 kB of 80.00 kB to download" in err
    assert hub.contents == [VAE_WEIGHTS]
    assert (tmp_path / "to" / VAE_WEIGHTS).read_bytes() == hub.repos[VAE][VAE_WEIGHTS]


@pytest.mark.skipif(os.name == "nt", reason="needs a signal of POSIX")
def test_ctrl_c_keeps_what_is_whole(hub, terminal, tmp_path):
    hub.faults[f"{VAE}/{VAE_WEIGHTS}"] = "stall"
    process = terminal.start("vae", "--yes", "--to", tmp_path / "to")
    assert hub.stalled.wait(60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1] == "stopped; the same command goes on, and files that are whole are not fetched again"
    assert (tmp_path / "to" / "vae" / "config.json").is_file() and not (tmp_path / "to" / VAE_WEIGHTS).exists()
    hub.faults.clear()
    hub.requests.clear()
    assert terminal.run("vae", "--yes", "--to", tmp_path / "to")[0] == 0
    assert hub.contents == [VAE_WEIGHTS]
    assert not [path for path in (tmp_path / "to").rglob("*.incomplete") if path.stat().st_size]
