"""Weights from the hub: addresses, what is fetched, what goes wrong; against a hub on this machine, in fresh processes."""

import hashlib
import re
from pathlib import Path

import fake_hub
import golden_files
import pytest
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.weights.hub import BUNDLES, in_units
from sana_streaming.sana_core.weights.hub_address import parse_uri
from sana_streaming.sana_core.weights.locate import Components, locate

RELEASE = "Efficient-Large-Model/SANA-Streaming"
GEMMA = "Efficient-Large-Model/gemma-2-2b-it"


def content(name: str, size: int = 40_000) -> bytes:
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


@pytest.fixture
def hub():
    repos = {
        RELEASE: [
            "README.md",
            "dit/sana_streaming_ar.pth",
            "ltx2_causal_vae_0516/config.json",
            "ltx2_causal_vae_0516/diffusion_pytorch_model.safetensors",
            "source/clip.mp4",
        ],
        "Lightricks/LTX-2": [
            "ltx-2-19b-dev.safetensors",
            "model_index.json",
            "text_encoder/model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "vae_upscaler/model.safetensors",
        ],
        GEMMA: [
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/consolidated.pth",
            "pytorch_model.bin",
            "tokenizer.model",
        ],
    }
    with fake_hub.FakeHub(
        {repo: {name: content(repo + name) for name in names} for repo, names in repos.items()}
    ) as it:
        yield it


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


class TestAddresses:
    @pytest.mark.golden
    def test_grammar_of_the_release(self, tmp_path, monkeypatch):
        """Except that a trailing slash is dropped and that ``@`` begins a revision."""
        monkeypatch.chdir(tmp_path)
        for case in golden_files.load_json("text/uri_cases.json")["cases"]:
            if case["kind"] == "error":
                with pytest.raises(InputError) as error:
                    parse_uri(case["uri"])
                assert case["uri"] in str(error.value) and "\n" not in str(error.value)
                continue
            address = parse_uri(case["uri"])
            if case["kind"] == "local":
                assert address is None, case
            else:
                repo, _, revision = case["repo_id"].partition("@")
                expected = (repo, case["subpath"].removesuffix("/"), revision)
                assert (address.repo, address.path, address.revision) == expected, case

    def test_revisions(self):
        address = parse_uri("hf://a/b@v1.0/c/d.pth")
        assert (address.repo, address.revision, address.path) == ("a/b", "v1.0", "c/d.pth")
        assert str(address) == "hf://a/b@v1.0/c/d.pth"
        assert parse_uri("hf://a/b/c@d.pth").path == "c@d.pth"

    @pytest.mark.parametrize(
        "uri",
        ["hf://a/b/../c", "hf://a/b/c/..", "hf://a/b//etc/passwd", "hf://a/b/c\\d", "hf://../b/c", "hf://a/b@../c"],
    )
    def test_paths_stay_inside_the_repository(self, uri):
        with pytest.raises(InputError, match="leaves the repository or is absolute"):
            parse_uri(uri)

    @pytest.mark.parametrize("uri", ["hf://a/b@/c", "hf://a/@v1/c"])
    def test_empty_parts(self, uri):
        with pytest.raises(InputError, match="is not an address; write hf://owner/repo/path"):
            parse_uri(uri)

    def test_a_local_path_of_that_name_wins(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("hf://a/b").mkdir(parents=True)
        assert parse_uri("hf://a/b") is None

    def test_bundles_are_where_the_release_says(self):
        listed = {name: (str(address), component) for name, (address, component) in BUNDLES.items()}
        assert listed == {
            "streaming-2b": (f"hf://{RELEASE}/dit/sana_streaming_ar.pth", "model"),
            "bidirectional-2b": (f"hf://{RELEASE}_bidirectional/dit/sana_bidirectional_short.pth", "model"),
            "vae": ("hf://Lightricks/LTX-2/vae", "vae"),
            "causal-vae": (f"hf://{RELEASE}/ltx2_causal_vae_0516", "vae"),
            "text-encoder": (f"hf://{GEMMA}", "text-encoder"),
        }


def test_nothing_is_asked_without_an_address(hub, home):
    code = """
import sys
from sana_streaming.sana_core.weights import hub
result = [str(resolve_uri("owner/repo/file.pth")), str(resolve_uri(Path("x.pth"))), "huggingface_hub" in sys.modules]
"""
    assert hub.result(home, code) == ["owner/repo/file.pth", "x.pth", False]
    assert hub.requests == []


class TestDownload:
    def test_only_the_vae_of_a_family_and_only_once(self, hub, home):
        code = """
plan, seen = plan_download("vae"), []
before = [file.path for file in remaining(plan)]
path = download(plan, on_progress=lambda *now: seen.append(now))
records = [record.read_text().split() for record in sorted(path.glob("*.sha256"))]
result = dict(
    path=str(path), files={f.path: f.size for f in plan.files}, total=plan.total_bytes, before=before, records=records,
    seen=seen, after=len(remaining(plan)), whole=(path / "diffusion_pytorch_model.safetensors").read_bytes().hex(),
)
"""
        first = hub.result(home, code)
        names = ["config.json", "diffusion_pytorch_model.safetensors"]
        wanted = [f"vae/{name}" for name in names]
        files = hub.repos["Lightricks/LTX-2"]
        assert first["files"] == {name: len(files[name]) for name in wanted}
        assert first["before"] == wanted == hub.contents
        assert first["path"].startswith(str(home)) and first["path"].endswith(f"snapshots/{fake_hub.COMMIT}/vae")
        assert first["whole"] == files[wanted[1]].hex()
        assert first["records"] == [[hashlib.sha256(files[f"vae/{name}"]).hexdigest(), name] for name in names]
        done = [now for _, now, _ in first["seen"]]
        assert done == sorted(done) and done[-1] == first["total"] == 80_000 and len(done) >= 2
        assert first["after"] == 0

        again = hub.result(home, code)
        assert hub.contents == wanted
        assert (again["path"], again["before"], again["seen"]) == (first["path"], [], [])

    def test_a_folder_of_ones_own_serves_all_three_networks(self, hub, home, tmp_path):
        to = tmp_path / "models"
        code = f"""
plans = [plan_download(name) for name in ("streaming-2b", "vae", "text-encoder")]
result = [str(download(plan, {str(to)!r})) for plan in plans]
"""
        wanted = [to / "dit/sana_streaming_ar.pth", to / "vae", to / "text_encoder"]
        assert list(map(Path, hub.result(home, code))) == wanted
        assert locate(to) == Components(*wanted)
        asked = hub.contents
        assert {path.name for path in (to / "text_encoder").iterdir() if path.suffix != ".sha256"} == {
            ".cache",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model",
        }
        assert not (home / "hub").exists() or not list((home / "hub").glob("models--*"))
        hub.result(home, code)
        assert hub.contents == asked

    @pytest.mark.parametrize("own_folder", [False, True])
    def test_a_changed_file_is_fetched_again(self, hub, home, tmp_path, own_folder):
        to = str(tmp_path / "to") if own_folder else None
        code = f"""
import os
path = download(plan_download("streaming-2b"), {to!r})
path.write_bytes(path.read_bytes()[::-1])
os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 10))
result = str(download(plan_download("streaming-2b"), {to!r}))
"""
        path = Path(hub.result(home, code))
        assert path.read_bytes() == hub.repos[RELEASE]["dit/sana_streaming_ar.pth"]
        assert hub.contents == ["dit/sana_streaming_ar.pth"] * 2

    def test_what_belongs_to_a_named_file_comes_along(self, hub, home):
        code = f"""
plans = [plan_download(uri) for uri in (
    "hf://{GEMMA}/model.safetensors.index.json",
    "hf://Lightricks/LTX-2/vae/diffusion_pytorch_model.safetensors",
    "hf://{RELEASE}/source/clip.mp4",
    "hf://{RELEASE}@{fake_hub.COMMIT}/source/",
)]
result = [[file.path for file in plan.files] for plan in plans]
"""
        shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        assert hub.result(home, code) == [
            ["model.safetensors.index.json", "config.json", *shards],
            ["vae/diffusion_pytorch_model.safetensors", "vae/config.json"],
            ["source/clip.mp4"],
            ["source/clip.mp4"],
        ]
        assert hub.contents == []

    def test_a_connection_cut_half_way_goes_on_where_it_broke(self, hub, home):
        hub.faults[f"{RELEASE}/dit/sana_streaming_ar.pth"] = "cut once"
        code = """
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000
plan = plan_download("streaming-2b")
try: result = str(download(plan))
except InputError: result = str(download(plan))
"""
        # Versions of the library before 1.0 give up, and go on at the next call.
        path = hub.result(home, code)
        assert Path(path).read_bytes() == hub.repos[RELEASE]["dit/sana_streaming_ar.pth"]
        assert [request.range for request in hub.gets] == [None, "bytes=20000-"]

    def test_progress_may_stop_it(self, hub, home):
        """After the first word of it nothing more is asked for, and the next call fetches the rest."""
        code = """
class Stop(Exception): pass
told = []
def stop(file, done, total):
    told.append(file)
    raise Stop
plan = plan_download("text-encoder")
names = [file.path for file in plan.files]
try: download(plan, on_progress=stop)
except Stop: result = [names, told]
"""
        names, told = hub.result(home, code)
        assert len(names) > 2 and told == names[:1] == hub.contents
        code = """
plan = plan_download("text-encoder")
download(plan)
result = len(remaining(plan))
"""
        assert hub.result(home, code) == 0
        assert set(hub.contents) == set(names)


class TestAddressesAsPaths:
    def test_resolved_once_then_from_the_cache_even_offline(self, hub, home):
        code = """
result = [str(resolve_uri("hf://Lightricks/LTX-2", "vae")), str(resolve_uri("hf://Lightricks/LTX-2/vae/config.json"))]
"""
        vae, config = hub.result(home, code)
        assert Path(vae).name == "vae" and Path(config) == Path(vae) / "config.json"
        assert sorted(hub.contents) == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
        asked = len(hub.requests)
        assert hub.result(home, code, HF_HUB_OFFLINE="1") == [vae, config]
        assert len(hub.requests) == asked
        # A hub that is gone is no reason not to use what is there.
        assert hub.result(home, code, HF_ENDPOINT="http://127.0.0.1:9") == [vae, config]
        hub.faults["Lightricks/LTX-2"] = "html"
        assert "does not answer as a hub does" in hub.error(home, code)

    def test_three_addresses_and_a_typing_error_first(self, hub, home):
        code = f"""
import sys
from sana_streaming.sana_core.weights.locate import locate, path_or_address
uris = [path_or_address(uri) for uri in ("hf://{RELEASE}", "hf://{RELEASE}/ltx2_causal_vae_0516", "hf://{GEMMA}")]
try: locate(uris[0], Path("typo"), uris[2])
except InputError as error: result = [str(error), "huggingface_hub" in sys.modules]
files = locate(*uris)
result += [files.model.name, files.vae.name, (files.text_encoder / "config.json").is_file()]
"""
        message = "--vae typo does not exist; give the path of the causal LTX-2 VAE"
        assert hub.result(home, code) == [message, False, "sana_streaming_ar.pth", "ltx2_causal_vae_0516", True]
        assert len(hub.contents) == len(set(hub.contents)) == 1 + 2 + 5


class TestPublishedModels:
    """``streaming-2b`` as a model: from the cache, fetched when told to, and nothing asked otherwise."""

    LOCATE = """
from sana_streaming.sana_core.weights.locate import locate
files = locate({arguments})
result = [str(files.model), str(files.vae), str(files.text_encoder)]
"""

    def test_fetched_only_when_told_to_and_then_from_the_cache(self, hub, home):
        code = self.LOCATE.format(arguments="'streaming-2b', download={}")
        message = hub.error(home, code.format(False))
        assert message.startswith("streaming-2b is not on this machine: run ")
        assert "python -m sana_streaming download streaming-2b causal-vae text-encoder, or add --download" in message
        assert hub.requests == []
        model, vae, text = fetched = hub.result(home, code.format(True))
        assert Path(model).read_bytes() == hub.repos[RELEASE]["dit/sana_streaming_ar.pth"]
        assert Path(vae).name == "ltx2_causal_vae_0516" and Path(vae).parent == Path(model).parents[1]
        assert (Path(text) / "config.json").read_bytes() == hub.repos[GEMMA]["config.json"]
        asked = len(hub.requests)
        assert hub.result(home, code.format(False)) == fetched
        assert hub.result(home, code.format(True), HF_HUB_OFFLINE="1") == fetched
        assert len(hub.requests) == asked

    def test_what_is_beside_it_or_given_comes_first(self, hub, home, tmp_path):
        for name in ("streaming-2b", "causal-vae"):
            hub.result(home, f"result = str(download(plan_download({name!r})))")
        (tmp_path / "gemma").mkdir()
        asked = len(hub.requests)
        found = hub.result(home, self.LOCATE.format(arguments="'streaming-2b', text_encoder='gemma'"))
        assert Path(found[1]).name == "ltx2_causal_vae_0516" and found[2] == "gemma"
        assert len(hub.requests) == asked
        message = hub.error(home, self.LOCATE.format(arguments="'streaming-2b'"))
        assert message.startswith("streaming-2b needs text-encoder, which is not on this machine")

    def test_only_small_files_are_not_a_network(self, hub, home):
        for address in (f"{RELEASE}/dit/sana_streaming_ar.pth", "Lightricks/LTX-2/vae/config.json"):
            hub.result(home, f"result = str(download(plan_download('hf://{address}')))")
        message = hub.error(home, self.LOCATE.format(arguments="'streaming-2b', text_encoder='.'"))
        assert message.startswith("streaming-2b needs causal-vae, which is not on this machine")

    def test_plain_paths_ask_nobody(self, hub, home, tmp_path):
        (tmp_path / "dit.pth").write_bytes(b"x")
        code = self.LOCATE.format(arguments="'dit.pth', text_encoder='.'")
        assert "holds no vae or ltx2_causal_vae_0516; give --vae the path of" in hub.error(home, code)
        code = self.LOCATE.format(arguments="'dit.pth', '.', '.'")
        code += "import sys; result.append('huggingface_hub' in sys.modules)"
        assert hub.result(home, code) == ["dit.pth", ".", ".", False]
        assert hub.requests == []

    def test_the_built_in_model_fetches_nothing(self, hub, home):
        hub.result(home, self.LOCATE.format(arguments="'nano', download=True"))
        assert hub.requests == []

    def test_what_a_model_of_ones_own_lacks_is_fetched_when_told_to(self, hub, home, tmp_path):
        (tmp_path / "dit.pth").write_bytes(b"x")
        found = hub.result(home, self.LOCATE.format(arguments="'dit.pth', text_encoder='.', download=True"))
        assert found[::2] == ["dit.pth", "."] and Path(found[1]).name == "ltx2_causal_vae_0516"
        names = ("config.json", "diffusion_pytorch_model.safetensors")
        assert sorted(hub.contents) == [f"ltx2_causal_vae_0516/{name}" for name in names]

    def test_the_public_vae_serves_short_clips_and_streams_that_have_no_causal_one(self, hub, home):
        for name in ("streaming-2b", "vae"):
            hub.result(home, f"result = str(download(plan_download({name!r})))")
        asked = len(hub.requests)
        found = hub.result(home, self.LOCATE.format(arguments="'streaming-2b', text_encoder='.'"))
        assert Path(found[1]).parents[2].name == "models--Lightricks--LTX-2" and len(hub.requests) == asked
        message = hub.error(home, self.LOCATE.format(arguments="'bidirectional-2b', text_encoder='.'"))
        assert "download bidirectional-2b vae text-encoder" in message


class TestRefusals:
    def error(self, hub, home, code, **environment):
        message = hub.error(home, code, **environment)
        assert message != "None" and "\n" not in message
        return message

    @pytest.mark.parametrize(
        ("fault", "uri", "expected"),
        [
            (
                {},
                f"hf://{RELEASE}/dit/typo.pth",
                "no such file or folder in the repository; it holds README.md, dit/sana",
            ),
            ({}, f"hf://{RELEASE}/di", "no such file or folder"),
            ({}, "hf://nobody/nothing/x.pth", "no such repository for you to see.*HF_TOKEN"),
            ({}, "hf://no body/nothing/x.pth", "no body/nothing cannot be a repository"),
            ({}, f"hf://{RELEASE}@v9/dit/x.pth", "no revision 'v9'; leave out @revision"),
            ({}, "hf://Lightricks/LTX-2", "is a whole repository; add the path"),
            (
                {RELEASE: "gated"},
                "streaming-2b",
                f"sana_streaming_ar.pth: the repository is gated; open .*{RELEASE}, accept",
            ),
            (
                {RELEASE: "unauthorized"},
                "streaming-2b",
                "no such repository for you to see.*log in: run hf auth login, or set HF_TOKEN",
            ),
            ({RELEASE: "html"}, "streaming-2b", "does not answer as a hub does; check HF_ENDPOINT"),
            ({f"{RELEASE}/dit/sana_streaming_ar.pth": "missing"}, "streaming-2b", "no such file in the repository"),
            ({}, "streaming", "'streaming' is nothing to download; choose one of streaming-2b, bidirectional-2b, vae"),
        ],
    )
    def test_by_the_hub(self, hub, home, fault, uri, expected):
        hub.faults |= fault
        message = self.error(hub, home, f"download(plan_download({uri!r}))")
        assert re.search(expected, message), message
        assert uri in message or uri == "streaming-2b"

    def test_wrong_content_is_removed(self, hub, home):
        hub.faults[f"{RELEASE}/dit/sana_streaming_ar.pth"] = "other"
        code = "result = str(download(plan_download('streaming-2b')))"
        assert "is not the file that it lists (sha256 or size differ) and was removed" in self.error(hub, home, code)
        assert not [path for path in home.rglob("*") if path.is_file() and path.stat().st_size == 40_000]
        hub.faults.clear()
        assert Path(hub.result(home, code)).read_bytes() == hub.repos[RELEASE]["dit/sana_streaming_ar.pth"]

    def test_wrong_small_file_in_a_folder_of_ones_own(self, hub, home, tmp_path):
        hub.faults["Lightricks/LTX-2/vae/config.json"] = "other"
        code = f"download(plan_download('vae'), {str(tmp_path / 'to')!r})"
        assert "LTX-2/vae/config.json: what http" in self.error(hub, home, code)
        assert not (tmp_path / "to/vae/config.json").exists()

    def test_connection_lost_for_good_keeps_whole_files(self, hub, home, tmp_path):
        name = "vae/diffusion_pytorch_model.safetensors"
        hub.faults[f"Lightricks/LTX-2/{name}"] = "cut"
        code = f"result = str(download(plan_download('vae'), {str(tmp_path / 'to')!r}))"
        message = self.error(hub, home, code)
        assert f"LTX-2/{name}: the connection to {hub.endpoint} failed or broke off" in message
        assert "run it again, files that are whole are kept" in message
        assert not (tmp_path / "to" / name).exists()
        hub.faults.clear()
        hub.requests.clear()
        hub.result(home, code)
        assert hub.contents == [name]

    def test_no_space(self, hub, home):
        code = """
import shutil
from collections import namedtuple
shutil.disk_usage = lambda _: namedtuple("Usage", "total used free")(1, 1, 1000)
download(plan_download("vae"))
"""
        message = self.error(hub, home, code)
        assert "no space left; it needs 80.00 kB there, 1.00 kB are free: free some, or choose another disk" in message
        assert hub.contents == []

    def test_disk_full_half_way(self, hub, home):
        code = """
import builtins, errno, os
from huggingface_hub import file_download
def full(*_, **__): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
file_download.http_get = full
download(plan_download("vae"))
"""
        assert "no space left" in self.error(hub, home, code)

    def test_folder_that_cannot_be_written(self, hub, home, tmp_path):
        (tmp_path / "file").write_text("")
        message = self.error(hub, home, f"download(plan_download('vae'), {str(tmp_path / 'file')!r})")
        assert f"cannot write {tmp_path / 'file'}" in message

    def test_offline_and_not_cached(self, hub, home):
        code = "resolve_uri('hf://Lightricks/LTX-2/vae')"
        message = self.error(hub, home, code, HF_HUB_OFFLINE="1")
        assert (
            f"hf://Lightricks/LTX-2/vae is not in the cache {home / 'hub'}, and HF_HUB_OFFLINE is set: unset" in message
        )
        assert hub.requests == []
        assert "failed or broke off" in self.error(hub, home, code, HF_ENDPOINT="http://127.0.0.1:9")


def test_sizes_for_people():
    assert [in_units(size) for size in (999, 1500, 4_522_610_016)] == ["999 bytes", "1.50 kB", "4.52 GB"]
