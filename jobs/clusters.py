"""Cluster profiles: ``configs/clusters/<name>.yaml``, the only place with host facts."""

from __future__ import annotations

import re
import shutil
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from jobs.profiles import profile_file
from pipeline.config import Section, read_yaml
from pipeline.errors import UserError

TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@:-]*$")]
# A remote shell reads it: nothing that means something to one but the home folder and variables.
FarFolder = Annotated[str, StringConstraints(pattern=r"^[~$A-Za-z0-9_/.][$A-Za-z0-9_/.+=@,~-]*$")]


class Ssh(Section):
    """How a laptop reaches the cluster: ``host`` as one types it after ``ssh``, ``folder`` of the project there."""

    host: HostName
    folder: FarFolder = "slurmphony"


class Cluster(Section):
    """Host facts; see ``configs/clusters/default.yaml`` for what each one means."""

    scheduler: Literal["slurm", "local"]
    partition: str | None = None
    cpu_partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = "12:00:00"
    gpus_per_node: int = Field(4, gt=0)
    gpu_type: str | None = None
    cpus_per_gpu: int = Field(8, gt=0)
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    gpu_memory_gib: float | None = Field(None, gt=0)
    interface: str | None = None
    exclusive: bool = False
    signal_seconds: int = Field(120, gt=0)
    environment: dict[EnvironmentName, str] = Field(default_factory=dict)
    setup: list[str] = Field(default_factory=list)
    data: str | None = None
    runs: str | None = None
    weights: str | None = None
    ssh: Ssh | None = None


def load_cluster(name: str) -> Cluster:
    """The profile ``name``; UserError lists the profiles where there is none, and names a key that is not known."""
    path = profile_file(name)
    try:
        return Cluster.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        valid = ", ".join(Cluster.model_fields)
        raise UserError(
            f"configs/clusters/{name}.yaml: '{where}': {first['msg'].lower()}. Valid keys: {valid}."
        ) from None


def choose_cluster(given: str | None, *, dry_run: bool) -> tuple[str, str]:
    """(profile name, why): what was asked for, else SLURM where sbatch is on the PATH, else this machine."""
    if given:
        return given, "as asked"
    if shutil.which("sbatch"):
        return "default", "sbatch is on the PATH; --cluster NAME chooses a profile"
    if dry_run:
        return (
            "default",
            "no sbatch on the PATH; shown is the script of the profile 'default', --cluster NAME chooses another",
        )
    return "local", "no sbatch on the PATH"


def minutes(text: str) -> int:
    """``[D-]H:MM:SS`` in whole minutes, rounded up; UserError where it is not of that form."""
    match = TIME.fullmatch(text)
    if not match:
        raise UserError(f"a time limit is H:MM:SS or D-H:MM:SS, not '{text}'; for example --time 12:00:00.")
    days, hours, mins, seconds = (int(part or 0) for part in match.groups())
    total = days * 1440 + hours * 60 + mins + (1 if seconds else 0)
    if total == 0:
        raise UserError("a time limit of zero lets nothing run; for example --time 12:00:00.")
    return total
