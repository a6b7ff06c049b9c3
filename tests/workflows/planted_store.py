"""A process of its own whose stores need secrets: runs the command lines that it reads as JSON, one after the other.

Its stores repeat the whole address, and the password in words of their own, when they complain.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.spec import AbstractFileSystem

ROWS = "".join(json.dumps({"prompt": f"ask {n}", "completion": f"say {n}"}) + "\n" for n in range(12)).encode()


class Store(AbstractFileSystem):
    """Gives the same rows at every address but those with ``wrong`` in them."""

    protocol = ("https", "webdavs")
    cachable = False

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if "wrong" in path:
            raise PermissionError(f"403 for 'https://{path}' ({unquote(path)})") from KeyError(unquote(path))
        return {"name": path, "size": len(ROWS), "type": "file"}

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        self.info(path)
        return io.BytesIO(ROWS)

    def isfile(self, path: str) -> bool:
        return self.info(path)["type"] == "file"

    def isdir(self, path: str) -> bool:
        return False


def install() -> None:
    """Puts the store in place of fsspec's own."""
    for protocol in Store.protocol:
        fsspec.register_implementation(protocol, Store, clobber=True)


def main() -> None:
    """Runs the commands; each may fail. What fails with a traceback ends the process."""
    from tunesmith.cli.app import main as command_line

    install()
    for command in json.load(sys.stdin):
        print("$", command[0], flush=True)
        try:
            command_line(command)
        except SystemExit as ended:
            print("exit", ended.code or 0, flush=True)


if __name__ == "__main__":
    main()
