"""Where a cluster's runs lie on the laptop, and what is known of every file that came.

pulled/<HOST>/
  <name>/<8 hex>/...            the runs, as on the cluster
  .sync/records/<name>/<8 hex>.json     size, hash and times of every file that came, sealed
  .sync/seen.json               when the cluster was last asked, by its clock, and how it was reached
  .sync/incoming/  .sync/lock   files on their way; one command at a time
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RunFailed
from pipeline.files import read_json, write_json
from sync.far import digest_of, list_files

if TYPE_CHECKING:
    from sync.host import Host
    from sync.record import Record

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 15.0  # seconds to wait for a command that is just ending


class Pulled:
    """One cluster's runs on this machine, below the folder ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    records = property(lambda self: self.root / ".sync" / "records")
    incoming = property(lambda self: self.root / ".sync" / "incoming")

    def record_file(self, run: str) -> Path:
        return self.records / f"{run}.json"

    def record(self, run: str) -> Record:
        """What came of a run; empty where nothing did. ValueError where the record itself is damaged."""
        from sync.record import read_record  # late: a look at what has not changed reads none

        return read_record(self.record_file(run))

    def write_record(self, run: str, record: Record) -> None:
        from sync.record import write_record

        write_record(self.record_file(run), run, record)

    def digest_here(self, run: str, tops: list[str]) -> str:
        """A word for how a run lies here, its record included: another one after any change."""
        try:
            stat = self.record_file(run).stat()
            record = [stat.st_size, stat.st_mtime_ns]
        except FileNotFoundError:
            record = []
        return digest_of({"": record, **list_files(str(self.root / run), tops)})

    def looks(self, parts: tuple[str, ...]) -> dict[str, tuple[str, str]]:
        """By run how it lay there and here when nothing of ``parts`` was left to bring."""
        tree = read_json(self.root / ".sync" / "looks.json")
        of_parts = tree.get(",".join(parts)) if isinstance(tree, dict) else None
        return {run: (there, here) for run, (there, here) in (of_parts or {}).items()}

    def write_looks(self, parts: tuple[str, ...], looks: dict[str, tuple[str, str]]) -> None:
        path = self.root / ".sync" / "looks.json"
        tree = read_json(path)
        write_json(path, {**(tree if isinstance(tree, dict) else {}), ",".join(parts): looks}, durable=False)

    def recorded_runs(self) -> list[str]:
        return sorted(str(path.relative_to(self.records).with_suffix("")) for path in self.records.glob("*/*.json"))

    @property
    def seen(self) -> dict[str, Any] | None:
        tree = read_json(self.root / ".sync" / "seen.json")
        return tree if isinstance(tree, dict) else None

    def saw(self, at: float, host: Host) -> None:
        """Note when the cluster was asked, by its own clock: whether a run was alive is judged as of then."""
        reached = {name: getattr(host, name) for name in ("address", "folder", "runs", "profile")}
        write_json(self.root / ".sync" / "seen.json", {"host": host.name, "time": at, **reached}, durable=False)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one command writes here at a time; the lock goes with its holder, however that ends. RunFailed where it stays taken."""
        self.incoming.mkdir(parents=True, exist_ok=True)
        with (self.root / ".sync" / "lock").open("a+") as file:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        file.seek(0)
                        holder = file.read().strip() or "unknown"
                        raise RunFailed(
                            f"another pull or repair (process {holder}) is at work in {self.root}; let it end, or end it."
                        ) from None
                    time.sleep(0.1)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            os.set_inheritable(file.fileno(), True)  # rsync holds it, too
            yield


def pulled_root(given: str | None) -> Path:
    """The folder that holds one folder a cluster: as given, ``SLURMPHONY_PULLED``, else ``pulled/``."""
    return Path(given or os.environ.get("SLURMPHONY_PULLED") or ROOT / "pulled").absolute()
