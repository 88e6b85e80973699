"""Bring pretrained weights into one local folder, on a machine with internet; everything else reads them from there.

    python data_prep/fetch_weights.py NAME --out DIR [--source DIR|URL]
    python data_prep/fetch_weights.py --list [--out DIR]
    python data_prep/fetch_weights.py [NAME] --out DIR --verify

DIR is what SLURMPHONY_WEIGHTS names later. Killed or cut off, the same command goes on where it was. --source is for machines behind a
wall: another such folder (carried over), or a server that offers one. A file counts only when its sha256 is that of whoever names one:
the publisher, the hub, the source's manifest, an earlier fetch. Where nobody does, the manifest says so.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.weights_catalogue import CATALOGUE, MB, Published
from models.codecs.weights import MANIFEST, WeightFile, difference, find_weights, weights_root, write_manifest
from pipeline.errors import RunFailed, UserError, nearest, run_command
from pipeline.files import fsync_folder, hash_file


def main() -> None:
    args = _parser().parse_args()
    if args.name is not None and args.name not in CATALOGUE:
        raise UserError(f"no weights '{args.name}'.{nearest(args.name, CATALOGUE)} There are: {', '.join(CATALOGUE)}.")
    root = weights_root(args.out)
    if args.list:
        _list(root)
        return
    if root is None:
        raise UserError("--out is missing: which folder shall hold the weights? ... --out DIR")
    if args.verify:
        _verify(root, args.name)
        return
    if args.name is None:
        raise UserError(f"say which weights: {', '.join(CATALOGUE)}; or --list to see what they are.")
    try:
        fetch(args.name, root, args.source)
    except OSError as error:
        raise RunFailed(
            f"{error.filename or root}: {error.strerror or error}; the same command goes on from here."
        ) from error
    print(f"for every other command: export SLURMPHONY_WEIGHTS={root.absolute()}", file=sys.stderr)
    print(root / args.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python data_prep/fetch_weights.py", description="Bring pretrained weights into one local folder."
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help=f"one of: {', '.join(CATALOGUE)}")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the weights folder (default: $SLURMPHONY_WEIGHTS)")
    parser.add_argument("--source", metavar="DIR|URL", help="another weights folder, or a server that offers one")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="what there is, its licence, and what is here")
    what.add_argument("--verify", action="store_true", help="read every byte of what is here and compare")
    return parser


@dataclass(frozen=True)
class Expected:
    """A sha256 (or its first digits) and who says so."""

    sha256: str
    by: str


class Folder:
    """Files from another weights folder."""

    def __init__(self, name: str, root: Path) -> None:
        if not (root / name).is_dir():
            raise UserError(
                f"--source {root} has no folder {name}; it must be one that fetch_weights.py has filled elsewhere."
            )
        self.folder, self._listed = root / name, _manifest_of(name, root)

    def bring(self, file: Published, part: Path) -> tuple[str, list[Expected]]:
        """Put the file into ``part``; where it came from, and what it should be."""
        path = self.folder / file.path
        shutil.copyfile(path, part)
        listed = self._listed.get(file.path)
        return str(path), [Expected(listed.sha256, "the source's manifest")] if listed is not None else []


class Server:
    """Files from their publishers, or from a server that offers a weights folder."""

    def __init__(self, name: str, base: str | None) -> None:
        from data_prep.download import open_session  # late: --help and mistakes answer at once

        self._session, self._base = open_session(base), None if base is None else f"{base.rstrip('/')}/{name}/"

    def bring(self, file: Published, part: Path) -> tuple[str, list[Expected]]:
        from data_prep.download import download
        from pipeline.progress import Progress

        url = file.url if self._base is None else self._base + file.path
        with Progress(f"fetching {file.path}", "MB", 0) as progress:
            claimed = download(
                self._session, url, part, file.cap, lambda *sizes: progress.update(*(s // MB for s in sizes))
            )
        return url, [Expected(claimed, "the server's word")] if claimed else []


def fetch(name: str, root: Path, source: str | None = None) -> None:
    """Make ``root/name`` complete: every file aside and checked, then all under their names, then the manifest.

    Raises UserError for a source that is none, RunFailed for a file that cannot be had or is another one.
    """
    entry, folder = CATALOGUE[name], root / name
    is_folder = source is not None and "://" not in source
    origin = Folder(name, Path(source)) if source is not None and is_folder else Server(name, source)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        earlier = _manifest_of(name, root)
        intact = {path: file for path, file in earlier.items() if not difference(folder, file)}
        brought = {
            file.path: _bring(origin, file, folder, earlier.get(file.path))
            for file in entry.files
            if file.path not in intact
        }
        for path in brought:
            (folder / path).with_name(f"{Path(path).name}.part").replace(folder / path)
            fsync_folder((folder / path).parent)
        write_manifest(name, root, entry.licence, [(brought | intact)[file.path] for file in entry.files])


def _bring(origin: Folder | Server, file: Published, folder: Path, earlier: WeightFile | None) -> WeightFile:
    """One file into its partial file, whole and checked against everyone who names a hash. RunFailed where it is another one."""
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.etag")
    url, expected = origin.bring(file, part)
    if file.sha256:
        expected.append(Expected(file.sha256, "the publisher's file name"))
    if earlier is not None:
        expected.append(Expected(earlier.sha256, "an earlier fetch"))
    sha256 = _sha256(part)
    for one in expected:
        if not sha256.startswith(one.sha256):
            part.unlink()
            tag.unlink(missing_ok=True)
            raise RunFailed(
                f"{url} is not the file that was expected: its sha256 is {sha256}, by {one.by} it begins with {one.sha256}. It was "
                f"removed; try again. If it stays so, the publisher has changed the file: to accept that, remove {folder / MANIFEST}."
            )
    tag.unlink(missing_ok=True)
    said = ", ".join(one.by for one in expected) or "nobody: the first one seen"
    print(f"{file.path}: {part.stat().st_size} bytes, sha256 {sha256[:16]}..., as said by {said}", file=sys.stderr)
    return WeightFile(file.path, url, part.stat().st_size, sha256, hash_file(part), said)


def _sha256(path: Path) -> str:
    """Of a file that is durable when this returns."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two fetches would write into one partial file. The lock goes with the process, however it ends."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another fetch is at work in {folder}; wait for it, then type the same again.") from None
        yield


def _manifest_of(name: str, root: Path) -> Mapping[str, WeightFile]:
    """What a folder's manifest says of the files, by path; empty where there is no readable one."""
    try:
        return {file.path: file for file in find_weights(name, root).files}
    except UserError:
        return {}


def _list(root: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "for", "licence", "here")
    for name, entry in CATALOGUE.items():
        here = "no folder named" if root is None else "yes" if _manifest_of(name, root) else "no"
        table.add_row(name, entry.use, entry.licence, here)
    Console().print(table)


def _verify(root: Path, name: str | None) -> None:
    names = [name] if name else [name for name in CATALOGUE if (root / name / MANIFEST).exists()]
    if not names:
        raise UserError(f"{root} holds no weights; --list shows what there is.")
    found = [
        (weights.folder, file) for weights in (find_weights(name, root) for name in names) for file in weights.files
    ]
    wrong = [sentence for folder, file in found if (sentence := _difference(folder, file))]
    if wrong:
        raise RunFailed(f"{'; '.join(wrong)}; fetch_weights.py {' or '.join(names)} --out {root} mends what is wrong.")
    print(f"{len(found)} files of {', '.join(names)}, every byte as fetched.", file=sys.stderr)
    print(root)


def _difference(folder: Path, file: WeightFile) -> str:
    """``difference``, and the sha256 too."""
    if sentence := difference(folder, file):
        return sentence
    return (
        ""
        if _sha256(folder / file.path) == file.sha256
        else f"{folder / file.path} has another sha256 than the manifest names"
    )


if __name__ == "__main__":
    run_command(main)
