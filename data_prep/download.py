"""One file over https into a partial file aside: resumed after a cut, never glued from two versions, never larger than it may be.

What lies in ``<name>.part`` is continued only where the server still has the version that it was begun with (``If-Range`` with the entity
tag kept in ``<name>.part.etag``); a server that ignores the range, or has no tag, sends all of it again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError, InvalidSchema
from urllib3.exceptions import MaxRetryError
from urllib3.util.retry import Retry

from pipeline.errors import RunFailed, UserError

CHUNK = 1 << 16  # bytes; of a body that breaks off, the library gives up what does not fill one
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces
BACKOFF = 0.5  # seconds, doubled at every attempt
ATTEMPTS = 6
BUSY = (429, 500, 502, 503, 504)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SHA256 = re.compile(r"[0-9a-f]{64}")
Tell = Callable[[int, int], None]  # bytes so far, and of all


def open_session(source: str | None = None) -> requests.Session:
    """A session that can speak https and nothing else, wherever it is redirected to; plain http to a ``source`` on this machine."""
    session = requests.Session()
    session.adapters.clear()
    adapter = HTTPAdapter(max_retries=_retries())
    session.mount("https://", adapter)
    if source is not None and not source.startswith("https://"):
        parts = urlsplit(source)
        if parts.scheme != "http" or parts.netloc.rpartition(":")[0] not in LOOPBACK:
            raise UserError(f"--source {source} is neither a folder, nor https, nor http://127.0.0.1:PORT.")
        session.mount(f"http://{parts.netloc}/", adapter)
    return session


class CutOff(Exception):
    """The body did not come to its end; what came is in the partial file."""


def download(session: requests.Session, url: str, part: Path, cap: int, tell: Tell) -> str:
    """Bring all of ``url`` into ``part``; the sha256 that the server claims for it, or the empty string.

    ``cap`` in bytes. Raises UserError for an address that may not be followed, RunFailed where it cannot be had; what had come by then
    stays in ``part``, and the next call goes on from there.
    """
    retries = _retries()
    while True:
        try:
            return _attempt(session, url, part, cap, tell)
        except CutOff as cut:
            try:  # between requests the library counts and waits by itself, but not within a body
                retries = retries.increment("GET", url, error=cut)
            except MaxRetryError:
                raise RunFailed(
                    f"{url} was cut off {ATTEMPTS} times ({cut}); {_size(part)} bytes are here, and the same command goes on from there."
                ) from cut
            retries.sleep()
        except InvalidSchema as error:
            raise UserError(f"{url} leads to an address that is not https, and was not followed ({error}).") from error
        except requests.RequestException as error:
            raise RunFailed(f"{url} cannot be fetched: {_reason(error)}") from error


def _attempt(session: requests.Session, url: str, part: Path, cap: int, tell: Tell) -> str:
    tag = part.with_name(f"{part.name}.etag")
    have = _size(part) if tag.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text()}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return _claimed(response)  # all of it came the last time
            part.unlink()
            raise CutOff("what had come was longer than what there is")
        response.raise_for_status()
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RunFailed(f"{url} does not say how long it is, so a cut would go unseen.")
        total = have + int(length)
        _refuse_size(url, part, total, int(length), cap)
        _note_tag(tag, response.headers.get("ETag", ""))
        with part.open("ab" if have else "wb") as file:
            try:
                for chunk in response.iter_content(CHUNK):
                    have += file.write(chunk)
                    tell(have, total)
            except (requests.ConnectionError, ChunkedEncodingError) as error:
                raise CutOff(_reason(error)) from error
        return _claimed(response)


def _note_tag(path: Path, tag: str) -> None:
    """Weak tags do not promise the same bytes."""
    path.unlink(missing_ok=True)
    if tag and not tag.startswith("W/"):
        path.write_text(tag)


def _refuse_size(url: str, part: Path, total: int, to_come: int, cap: int) -> None:
    if total > cap:
        part.unlink(missing_ok=True)
        raise RunFailed(f"{url} is larger than {cap} bytes: it is not the file that was asked for.")
    free = shutil.disk_usage(part.parent).free
    if to_come > free:
        raise RunFailed(
            f"{part.parent} has {free} bytes free, and {to_come} are to come; make room and type the same again."
        )


def _claimed(response: requests.Response) -> str:
    """The hub names the sha256 of its large files on the way to them."""
    tags = [r.headers.get("X-Linked-ETag", "").strip('"') for r in (*response.history, response)]
    return next((tag for tag in tags if SHA256.fullmatch(tag)), "")


def _retries() -> Retry:
    return Retry(
        ATTEMPTS - 1, backoff_factor=BACKOFF, status_forcelist=BUSY, allowed_methods=["GET"], raise_on_status=False
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
