"""Names become folders: bundled, local, GGUF, hub (a cache laid out by hand, and a server on this machine)."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tunesmith.errors import ModelError
from tunesmith.model.weights.resolve import kind, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


def silent(text: str) -> None:
    del text


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, an empty cache and an empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def cached(hub: Path, name: str, model: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """``model`` in the hub cache, as if it had been fetched."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    return Path(shutil.copytree(model, repository / "snapshots" / commit))


@pytest.fixture
def server(here: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that holds ``maker/tiny`` (with a pickle beside the weights); yields the list of paths asked for."""
    files = {entry.name: entry.read_bytes() for entry in tiny_model_dir.iterdir()}
    files |= {"pytorch_model.bin": b"pickle", "modeling_tiny.py": b"print()", "onnx/config.json": b"{}"}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            del format, args

        def do_HEAD(self) -> None:
            self.answer(send_body=False)

        def do_GET(self) -> None:
            self.answer(send_body=True)

        def answer(self, *, send_body: bool) -> None:
            path = self.path.split("?")[0]
            asked.append(path)
            status, headers, body = respond(path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

    def respond(path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/api/models/maker/gated"):
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}, b""
        if not re.match(r"/(api/models/)?maker/tiny", path):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if path.startswith("/api/models/maker/tiny/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if path.startswith("/api/models/maker/tiny"):
            if path.partition("/revision/")[2] not in ("", "main", COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            found = {"id": "maker/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        body = files[path.split(f"/{COMMIT}/")[1]]
        return 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body

    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield asked
    hub.shutdown()
    hub.server_close()


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (["config.json"], "model"),
        (["adapter_config.json"], "adapter"),
        (["adapter_config.json", "config.json"], "adapter"),
        (["recipe.yaml", "config.json"], "run"),
    ],
)
def test_folders_are_told_apart_by_what_is_in_them(here: Path, mark: list[str], expected: str) -> None:
    (here / "thing").mkdir()
    for name in mark:
        (here / "thing" / name).write_text("{}")
    assert kind("thing") == expected
    assert kind(str(here / "thing")) == expected


def test_names_are_told_apart_by_their_form(here: Path) -> None:
    (here / "model.gguf").write_bytes(b"GGUF")
    names = ("model.gguf", "smollm2-135m-instruct", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main")
    assert [kind(name) for name in names] == ["gguf", "bundled", "hub", "hub"]


def test_what_is_on_disk_comes_before_the_hub(here: Path) -> None:
    (here / "maker" / "tiny").mkdir(parents=True)
    (here / "maker" / "tiny" / "config.json").write_text("{}")
    assert kind("maker/tiny") == "model"


def test_a_mistyped_bundled_name_is_answered_with_the_right_one(here: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve("SmolLM2-135M-instuct")
    assert caught.value.why == "Model id mistyped? A hub id looks like user/name."
    assert caught.value.remedy == "did you mean smollm2-135m-instruct?"


def test_a_mistyped_folder_is_answered_with_its_sibling(here: Path) -> None:
    (here / "runs" / "tickets").mkdir(parents=True)
    (here / "runs" / "tickets" / "recipe.yaml").write_text("")
    (here / "my-model.gguf").write_bytes(b"GGUF")
    for name, meant in (("runs/tikets", "runs/tickets"), ("my-modle.gguf", "my-model.gguf"), ("./rums", "runs")):
        with pytest.raises(ModelError, match=f"did you mean {meant}\\?"):
            kind(name)


def test_a_folder_of_nothing_useful_says_what_it_holds(here: Path) -> None:
    (here / "thing").mkdir()
    (here / "thing" / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"It holds: notes\.txt"):
        kind("thing")
    (here / "thing" / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"name the file: thing/tiny\.gguf"):
        kind("thing")


def test_a_local_folder_is_used_where_it_is(here: Path, tiny_model_dir: Path) -> None:
    assert resolve(str(tiny_model_dir)) == tiny_model_dir.resolve()


def test_a_gguf_file_becomes_a_model_folder(here: Path, write_gguf: Callable[..., Path]) -> None:
    write_gguf(here / "tiny.gguf")
    folder = resolve("tiny.gguf", say=silent)
    assert kind(str(folder)) == "model"
    assert folder.parent == here.parent / "cache" / "models"


def test_a_pickle_is_refused_with_the_reason_and_the_way_to_convert_it(here: Path) -> None:
    (here / "old").mkdir()
    (here / "old" / "config.json").write_text("{}")
    (here / "old" / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelError, match="pickle") as caught:
        resolve("old")
    assert "can run any program" in str(caught.value.why)
    assert "save_pretrained" in str(caught.value.remedy)


def test_a_folder_of_runs_names_one_of_them(here: Path) -> None:
    (here / "runs" / "first").mkdir(parents=True)
    (here / "runs" / "first" / "recipe.yaml").write_text("model: m\n")
    with pytest.raises(ModelError) as caught:
        kind("runs")
    assert caught.value.remedy == "name one that is in it, such as runs/first."


@pytest.mark.parametrize(("mark", "what"), [("recipe.yaml", "a run"), ("adapter_config.json", "an adapter")])
def test_a_run_or_an_adapter_is_no_model_to_train(here: Path, mark: str, what: str) -> None:
    (here / "thing").mkdir()
    (here / "thing" / mark).write_text("{}")
    with pytest.raises(ModelError, match=f"this folder is {what}, not a model"):
        resolve("thing")


def test_a_revision_is_refused_for_what_is_local(here: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.revision: a revision goes with a hub id only"):
        resolve(str(tiny_model_dir), revision="main")


def test_a_cached_hub_model_is_found_offline_by_each_of_its_revisions(here: Path, tiny_model_dir: Path) -> None:
    main = cached(here.parent / "hub", "maker/tiny", tiny_model_dir)
    tagged = cached(here.parent / "hub", "maker/tiny", tiny_model_dir, OTHER, "v1")
    found = [
        resolve("maker/tiny", say=silent),
        resolve("maker/tiny@v1", say=silent),
        resolve("maker/tiny", revision="v1", say=silent),
        resolve(f"maker/tiny@{OTHER}", say=silent),
    ]
    assert found == [main, tagged, tagged, tagged]


def test_two_different_revisions_are_refused(here: Path) -> None:
    with pytest.raises(ModelError, match="two revisions are named"):
        resolve("maker/tiny@v1", revision="v2")


def test_offline_a_model_that_is_not_cached_is_answered_with_the_one_that_is(here: Path, tiny_model_dir: Path) -> None:
    cached(here.parent / "hub", "maker/tiny", tiny_model_dir)
    with pytest.raises(ModelError, match="maker/tinny cannot be fetched") as caught:
        resolve("maker/tinny")
    assert "HF_HUB_OFFLINE" in str(caught.value.why)
    assert str(caught.value.remedy).startswith("did you mean maker/tiny?")


def test_hub_model_is_fetched_without_pickles_programs_or_other_formats(here: Path, server: list[str]) -> None:
    said: list[str] = []
    folder = resolve("maker/tiny", say=said.append)
    names = {entry.name for entry in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not {"pytorch_model.bin", "modeling_tiny.py", "onnx"} & names
    assert not [path for path in server if path.endswith((".bin", ".py"))]
    assert said == [f"maker/tiny: revision {COMMIT}."]


def test_programs_of_a_hub_model_are_fetched_only_when_they_are_trusted(here: Path, server: list[str]) -> None:
    folder = resolve("maker/tiny", trust_remote_code=True, say=silent)
    assert (folder / "modeling_tiny.py").read_text() == "print()"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maker/nothing", r"the hub has no model maker/nothing\n  Model id mistyped\?\n.*smollm2-135m-instruct"),
        ("maker/gated", r"access to maker/gated has to be asked for(\n.*)*hf auth login"),
        ("maker/tiny@v9", r"maker/tiny has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_told_apart(here: Path, server: list[str], name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(name, say=silent)
