"""What sbatch says, in one sentence with the valid choices and what to type."""

from __future__ import annotations

import os
import shlex
import subprocess

from jobs.clusters import Cluster


def partitions() -> dict[str, dict[str, str]]:
    """``{partition: {"limit", "gres", "nodes"}}`` from one sinfo; empty where the controller does not answer."""
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%R|%l|%G|%D"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        name, limit, gres, nodes = line.split("|")
        found.setdefault(name, {"limit": limit, "gres": gres, "nodes": nodes})
    return found


def accounts() -> list[str]:
    """Accounts that this user may charge; empty where there is no accounting."""
    command = ["sacctmgr", "-n", "-P", "show", "assoc", "format=account"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return sorted({line for line in done.stdout.splitlines() if line})


def explain(stderr: str, name: str, cluster: Cluster, nodes: int, gpus: int, time: str) -> str:
    """One sentence for what sbatch refused. ``name`` is the profile's."""
    profile = f"configs/clusters/{name}.yaml"
    text = stderr.lower()
    known = partitions()
    here = known.get(cluster.partition or "", {})
    listed = (
        "; ".join(f"{p} (limit {f['limit']}, {f['nodes']} nodes, {f['gres']})" for p, f in known.items())
        or "none answered"
    )
    if (
        "resolve_ctls_from_dns" in text
        or "unknown host" in text
        or "could not establish a configuration source" in text
    ):
        return (
            "SLURM's commands are installed here, but know of no cluster; train on this machine with --cluster local, or start the "
            "practice cluster (make cluster) and export the SLURM_CONF that it prints."
        )
    if "unable to contact" in text or "connection refused" in text or "communication connection failure" in text:
        return "SLURM's controller does not answer; try `sinfo`, and if that hangs too, ask your site or wait and type the same again."
    if "invalid partition" in text:
        return f"there is no partition '{cluster.partition}' (partition in {profile}); there are: {listed}."
    if "account" in text:
        mine = ", ".join(accounts()) or "sacctmgr names none for you"
        charged = os.environ.get("SBATCH_ACCOUNT") or cluster.account
        return (
            f"the account {charged!r} (account in {profile}, or SBATCH_ACCOUNT) may not be charged here; yours: {mine}."
        )
    if "qos" in text:
        return f"the qos {cluster.qos!r} (qos in {profile}) is not known or not yours; `sacctmgr show qos format=name` lists them."
    if "time limit" in text:
        return f"the limit {time} is longer than the partition allows ({here.get('limit', listed)}); use --time or another partition."
    if "node count" in text:
        return f"--nodes {nodes} is more than the partition has ({here.get('nodes', listed)}); use fewer nodes or another partition."
    if "node configuration" in text or "gres" in text or "generic resource" in text:
        per_node = f"{gpus} GPUs and {gpus * cluster.cpus_per_gpu} CPUs"
        return (
            f"no node of the partition has {per_node} (--gpus {gpus}, cpus_per_gpu in {profile}); partitions: {listed}."
        )
    if "memory" in text:
        return f"no node has {cluster.mem_per_gpu} a GPU for {gpus} GPUs (mem_per_gpu in {profile}); lower it; partitions: {listed}."
    return f"sbatch refused the job: {shlex.quote(' '.join(stderr.split()))}; look at the script with --dry-run."
