"""``python -m tests.cluster up|down|status``: a SLURM of three nodes of four pretend GPUs on this machine, to practise on."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pipeline.errors import EXIT_FAILED, run_command
from tests.cluster.cluster import Cluster
from tests.cluster.layout import GPUS, default_folder


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and MariaDB: sacct, accounts, QOS")
    parser.add_argument("--dir", type=Path, default=default_folder(), help="its folder (default: %(default)s)")
    args = parser.parse_args()
    cluster = Cluster(args.dir, accounting=args.accounting)
    return {"up": up, "down": down, "status": status}[args.action](cluster)


def up(cluster: Cluster) -> int:
    before, began = cluster.is_up, time.monotonic()
    cluster.up()
    how = "is up already" if before else f"is up after {time.monotonic() - began:.1f} s"
    say(
        f"a cluster of {len(cluster.nodes)} nodes with {GPUS} pretend GPUs each {how}. Type this, then sinfo and sbatch find it:"
    )
    print(f"export SLURM_CONF={cluster.layout.conf}")
    return 0


def down(cluster: Cluster) -> int:
    before = bool(cluster.processes())
    cluster.down()
    say(f"the cluster in {cluster.layout.folder} {'is down' if before else 'was down already'}; its logs stay there.")
    return 0


def status(cluster: Cluster) -> int:
    """What sinfo and squeue say; exit code 1 where it is down."""
    if not cluster.is_up:
        say(f"no cluster is up in {cluster.layout.folder}; start one: python -m tests.cluster up")
        return EXIT_FAILED
    for words in (("sinfo", "--Node", "--long"), ("squeue",)):
        print(cluster.run(*words).stdout)
    print(f"export SLURM_CONF={cluster.layout.conf}")
    return 0


if __name__ == "__main__":
    run_command(main)
