"""Where a URL may lead: no redirect to this machine or its network, or to a plainer scheme."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError
from tunesmith.runs.stored_addresses import SCHEMES

if TYPE_CHECKING:
    import aiohttp

HTTP = re.compile(r"(^|::)https?://")
REFUSED = frozenset({"reference", "dask", "generic", "async_wrapper", "jlab", "jupyter"})  # they read what files name
_LINK_LOCAL, _LOOPBACK, _PRIVATE, _PUBLIC = range(4)
_PLACES = {_LINK_LOCAL: "a local address", _LOOPBACK: "this machine", _PRIVATE: "a private network"}


def refuse_schemes(address: str, name: str) -> None:
    """Raises DataError for a URL whose driver opens whatever the file at it names."""
    found = next((scheme for scheme in SCHEMES.findall(address) if scheme.lower() in REFUSED), None)
    if found is not None:
        raise DataError(
            f"{found}:// is not read",
            where=name,
            why="a file at such an address names other files, which would be opened too",
            remedy="copy the data to a file, and name that",
        )


def plain_http(address: str) -> bool:
    """Whether a URL is read in a way that others on the network can change."""
    found = re.search(r"(?:^|::)http://(?:[^/@]*@)?(\[[^\]]*\]|[^/:?#]*)", address)
    return found is not None and found[1].lower() not in ("localhost", "127.0.0.1", "[::1]")


class Redirects:
    """Looks at each redirect of an HTTP address. fsspec swallows errors, so the refusal is kept in ``refused``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.refused: list[DataError] = []

    def options(self, address: str) -> dict[str, Any]:
        """What ``fsspec`` gets for an address, beside it; nothing for one without HTTP."""
        schemes = {scheme.lower() for scheme in SCHEMES.findall(address)} & {"http", "https"}
        return {scheme: {"get_client": self.client, "skip_instance_cache": True} for scheme in schemes}

    async def client(self, **options: Any) -> aiohttp.ClientSession:
        """The session of a file system."""
        import aiohttp

        from tunesmith.data.files.http_answers import Answer

        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(self._look)
        return aiohttp.ClientSession(trace_configs=[trace], response_class=Answer, **options)

    def check(self) -> None:
        """Raises the refusal, if there was one."""
        if self.refused:
            raise self.refused[0]

    async def _look(self, session: Any, context: Any, found: aiohttp.TraceRequestRedirectParams) -> None:
        from yarl import URL

        said = found.response.headers.get("Location") or found.response.headers.get("URI") or ""
        target = found.url.join(URL(said))
        why = None
        if target.scheme not in ("http", "https"):
            why = f"a redirect leads to {target.scheme}://"
        elif found.url.scheme == "https" and target.scheme == "http":
            why = "a redirect leads from https:// to http://, where others on the network can change the data"
        else:
            before, after = await _place(found.url.host), await _place(target.host)
            if after < before:
                why = f"a redirect leads from {found.url.host} to {_PLACES[after]}, {target.host}"
        if why is not None:
            add = "" if not target.query_string else ", with its query, which is not shown as it may hold a signature"
            self.refused.append(
                DataError(
                    "the address leads elsewhere",
                    where=self.name,
                    why=why,
                    remedy=f"if you trust it, name the address itself{add}: {target.with_query(None)}",
                )
            )
            raise self.refused[-1]


async def _place(host: str | None) -> int:
    """How far inside an address is; the innermost of those that a name stands for."""
    if not host:
        return _PUBLIC
    try:
        found = [ipaddress.ip_address(host)]
    except ValueError:
        try:
            answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            return _PUBLIC  # it cannot be reached either
        found = [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
    return min(map(_place_of, found), default=_PUBLIC)


def _place_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_link_local:
        return _LINK_LOCAL
    if address.is_loopback or address.is_unspecified:
        return _LOOPBACK
    return _PUBLIC if address.is_global else _PRIVATE
