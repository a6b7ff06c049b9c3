"""Where the rows of a stored recipe may come from: its sender, and not the user, named the address.

Every address that opens a connection is asked for again, but those of the hub. No rule looks at the host: what a name
stands for may change between a check and the read, and a server outside learns who reads from it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path

from tunesmith.errors import RunError, TunesmithError
from tunesmith.recipe.file import dump, read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.cache import cache_dir
from tunesmith.runs.folder import Run
from tunesmith.runs.run_files import RECIPE

SCHEMES = re.compile(r"(?:^|::)(\w[\w+.-]*)(?=://|::)")
_PLAIN = frozenset({"hf", "file", "local", "zip", "tar"})  # the hub, as a hub id is; the others open no connection
_WEB = frozenset({"http", "https"})
_allowed: ContextVar[frozenset[str] | None] = ContextVar("allowed_addresses", default=frozenset())


@contextmanager
def addresses_allowed(addresses: Collection[str] | None) -> Iterator[None]:
    """Inside, rows of a stored recipe may come from these addresses, or from any (None), as the user said so."""
    token = _allowed.set(None if addresses is None else frozenset(addresses))
    try:
        yield
    finally:
        _allowed.reset(token)


def addresses_of(recipe: Recipe) -> dict[str, str]:
    """The addresses of all rows, each with its key."""
    found: dict[str, str] = {}
    for split in ("train", "eval", "test"):
        for source in recipe.data.sources(split):
            if "://" in source.address or "::" in source.address or _is_share(source.address):
                found.setdefault(source.address, f"data.{split}")
    return found


def refuse_stored_addresses(recipe: Recipe, run: Path, *, own: Collection[str] = ()) -> None:
    """Raises RunError if a run's recipe names rows at an address that the user has to allow.

    Args:
        recipe: is stored in the run.
        run: the run's folder.
        own: the addresses that the user named.
    """
    allowed = _allowed.get()
    if allowed is None:
        return
    odd = {
        address: (key, why)
        for address, key in addresses_of(recipe).items()
        if address not in allowed and address not in own and (why := _needs_leave(address)) is not None
    }
    if not odd or {*odd} <= _addresses_begun_here(run):
        return
    address, (key, why) = next(iter(odd.items()))
    raise RunError(
        f"This run asks to read rows from {address}",
        where=f"{run / RECIPE}: {key}",
        why=f"{why} A run of somebody else could name any address that this machine reaches.",
        remedy=f"If you trust it, name it yourself where the command takes keys: add {key}={shlex.quote(address)}; "
        "with train, eval and compare --allow-functions allows it too (in Python: allow_functions=True).",
    )


def write_recipe(run: Run, recipe: Recipe) -> None:
    """Writes a run's recipe, whose addresses are the user's word: the cache notes that it was written here.

    Call it once these addresses are allowed.
    """
    run.write_text(RECIPE, dump(recipe))
    note = _note(run.folder)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    except OSError:
        pass  # a cache that cannot be written: the question is asked


def _needs_leave(address: str) -> str | None:
    """Why an address is asked for again; None for a plain one."""
    if _is_share(address):
        return "It is a folder that another machine shares."
    schemes = {scheme.lower() for scheme in SCHEMES.findall(address)}
    if not schemes:
        return "Its form is unusual."
    access = min(schemes - _PLAIN - _WEB, default=None)
    if access is not None:
        return f"{access}:// is read with your own access, where there is some."
    return "Its server would learn that you read it, and it may lead inside your network." if schemes & _WEB else None


def _is_share(address: str) -> bool:
    return os.name == "nt" and address.replace("\\", "/").startswith("//")


def _addresses_begun_here(run: Path) -> set[str]:
    """The addresses in the recipe of a run that began on this machine; none of any other."""
    try:
        return {*addresses_of(read_recipe(run / RECIPE).recipe)} if _note(run).exists() else set()
    except (OSError, TunesmithError):
        return set()


def _note(run: Path) -> Path:
    return cache_dir() / "begun" / sha256((run / RECIPE).read_bytes()).hexdigest()
