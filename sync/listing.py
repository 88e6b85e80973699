"""What the cluster says that lies in its folder of runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.errors import RunFailed, UserError, nearest
from sync.parts import Files


class Listing(NamedTuple):
    """What lies in the runs' folder ``root`` there at ``time``, by its clock: files of the runs asked for, and names of all runs.

    ``digests``: of each run's listing. ``same``: runs whose listing is the one that was known; their files are not told again.
    """

    root: str
    time: float
    files: dict[str, Files]
    names: list[str]
    digests: dict[str, str]
    same: list[str]


def read_listing(
    host: str, run: str | None, head: dict[str, Any], names: dict[str, Any], *found: dict[str, Any]
) -> Listing:
    """The lines of the answer (``sync.far``) to a look for ``run`` on ``host``.

    Raises RunFailed where there is no folder of runs, UserError where no run is called so.
    """
    if not head["exists"]:
        raise RunFailed(f"{host} has no folder {head['root']} (profile '{host}': runs, or ssh.folder).")
    if run is not None and not found:
        near = nearest(run, names["runs"] if "/" in run else {name.partition("/")[0] for name in names["runs"]})
        shown = ", ".join(names["runs"][-10:]) or "none yet"
        raise UserError(f"{host} has no run '{run}'.{near} Runs there: {shown}.")
    told = {line["run"]: line["files"] for line in found if line["files"] is not None}
    files = {name: {n: facts for n, facts in listed.items() if _inside(n)} for name, listed in told.items()}
    digests = {line["run"]: line["digest"] for line in found}
    return Listing(head["root"], head["time"], files, names["runs"], digests, sorted(digests.keys() - told.keys()))


def _inside(name: str) -> bool:
    """Whether a name from there stays within the folder it is put in."""
    return all(part not in ("", ".", "..") for part in name.split("/"))
