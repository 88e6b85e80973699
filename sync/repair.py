"""Taking a file from the side that has it as it was written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.errors import RunFailed
from pipeline.runs import HEARTBEAT_STALE, RunFolder
from sync.arrival import bring
from sync.check import Checked
from sync.far import HASH
from sync.host import Host
from sync.judge import HERE, THERE
from sync.listing import Listing
from sync.progress import say, transfer
from sync.pulled import Pulled


def repair(host: Host, listing: Listing, pulled: Pulled, checked: Checked) -> None:
    """Bring what is good there, send what is good here. Extra files and what is good nowhere stay as they are."""
    fetched = [fault.name for fault in checked.faults if fault.good == THERE]
    sent = [fault.name for fault in checked.faults if fault.good == HERE]
    record = checked.record
    wanted = {f"{checked.run}/{name}": [record[name].size, record[name].changed_there] for name in fetched}
    if wanted:
        say(f"{checked.run}: bringing {len(wanted)} good files from {host.name}")
        bring(host, listing.root, pulled, wanted, "repair", afresh=True)
    if sent:
        _send(host, listing, pulled, checked, sent)


def _send(host: Host, listing: Listing, pulled: Pulled, checked: Checked, names: list[str]) -> None:
    """Send good files to the cluster; refused while the run is written to, for its writer has some of them open."""
    beat = listing.files.get(checked.run, {}).get(RunFolder(Path()).heartbeat_file.name)
    if beat and listing.time - beat[1] / 1e9 < HEARTBEAT_STALE:
        raise RunFailed(f"{checked.run} is being written on {host.name}; repair it when it has stopped.")
    say(f"{checked.run}: sending {len(names)} good files to {host.name}")
    paths = [f"{checked.run}/{name}" for name in names]
    with transfer("repair", sum(checked.record[name].size for name in names)) as told:
        host.send(paths, pulled.root, listing.root, told=told)
    record = pulled.record(checked.run)
    algorithm, replies = host.hashes(listing.root, [(path, None) for path in paths])
    for path, facts in replies:
        name = path.removeprefix(f"{checked.run}/")
        if facts:
            record[name] = replace(record[name], changed_there=facts[1], other="" if algorithm == HASH else facts[2])
    pulled.write_record(checked.run, record)
