"""Where a practice cluster's files lie, which ports it has, and its slurm.conf."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import random
import re
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

NODES = 3  # one more than most tests use: a dead one must leave enough to go on with
GPUS = 4
CPUS = 16  # declared, whatever the machine has: pretend GPUs want pretend cores
MEMORY = 16_000  # MB a node, declared too
PORTS = range(10_000, 20_000)  # below those that training jobs draw from, and below the kernel's ephemeral ones
LONGEST = 55  # characters of the folder's path: sockets below it may have 107, and slurmstepd's name takes the rest
SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")  # an ordinary user's PATH may lack them

PACKAGES = "sudo apt install slurmctld slurmd slurm-client munge"
ACCOUNTING_PACKAGES = "slurmdbd mariadb-server"


@dataclass(frozen=True)
class Layout:
    """Paths below ``folder``; nothing is written elsewhere."""

    folder: Path

    conf = property(lambda self: self.folder / "etc" / "slurm.conf")
    dbd_conf = property(lambda self: self.folder / "etc" / "slurmdbd.conf")
    logs = property(lambda self: self.folder / "logs")
    records = property(lambda self: self.folder / "pids")
    munge = property(lambda self: self.folder / "munge")
    munge_socket = property(lambda self: self.munge / "socket")
    database = property(lambda self: self.folder / "database")
    database_socket = property(lambda self: self.folder / "mysql.socket")

    def record(self, name: str) -> Path:
        """File that says which process a daemon is."""
        return self.records / name

    def output(self, name: str) -> Path:
        """What a daemon prints; SLURM's have a .log beside it, in which their steps write too."""
        return self.logs / f"{name}.out"

    def make(self) -> None:
        """Make the folders, for nobody else to look into; UserError where the path is too long or not ours."""
        if len(str(self.folder)) > LONGEST:
            raise UserError(
                f"{self.folder} is too long a path for SLURM's sockets: {len(str(self.folder))} characters, "
                f"at most {LONGEST}; choose another with --dir."
            )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)  # refused where somebody else made it
            for path in (self.conf.parent, self.logs, self.records, self.folder / "state", self.folder / "dev"):
                path.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made: {error.strerror}; choose another with --dir.") from error


@dataclass(frozen=True)
class Settings:
    """What a cluster is made with: ``auth`` munge or none, accounting on or off, a port for every daemon."""

    auth: str
    accounting: bool
    ports: tuple[int, ...]  # slurmctld, slurmdbd, then one a node

    @classmethod
    def choose(cls, *, accounting: bool, auth: str | None) -> Settings:
        """Ports that are free now. The daemons listen on all addresses and munge is what keeps strangers out; an
        ordinary user may do without where there is none, root would give the machine away."""
        auth = auth or ("munge" if find_program("munged") or os.getuid() == 0 else "none")
        if auth == "none" and os.getuid() == 0:
            raise UserError(f"as root a cluster needs munge; install it: {PACKAGES}")
        return cls(auth, accounting, free_ports(2 + NODES))


def default_folder() -> Path:
    """Where ``make cluster`` puts it: short, the user's own, the same on every call."""
    return Path(tempfile.gettempdir()) / f"slurmphony-cluster-{getpass.getuser()}"


def node_names() -> list[str]:
    """Loopback addresses as names: MASTER_ADDR resolves with no entry in any hosts file."""
    return [f"127.0.0.{11 + i}" for i in range(NODES)]


def find_program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))


def program(name: str) -> str:
    """Path of a program; UserError with what to install where there is none."""
    found = find_program(name)
    if found is None:
        raise UserError(f"there is no '{name}' on this machine; install SLURM: {PACKAGES} {ACCOUNTING_PACKAGES}")
    return found


def missing_programs(*, accounting: bool) -> list[str]:
    """The programs that this machine lacks."""
    wanted = ["slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel"]
    if os.getuid() == 0:
        wanted.append("munged")
    if accounting:
        wanted += ["slurmdbd", "sacctmgr", "sacct", "mariadbd", "mariadb"]
    return [name for name in wanted if find_program(name) is None]


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that could all be bound at once just now; drawn at random, so that two clusters starting together differ."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            candidate = held.enter_context(socket.socket())
            try:
                candidate.bind(("", port))
            except OSError:  # taken: the next one
                continue
            found.append(port)
            if len(found) == count:
                return tuple(found)
    raise UserError(f"fewer than {count} free ports between {PORTS.start} and {PORTS.stop}; see: ss -ltn")


def write_configuration(layout: Layout, settings: Settings) -> None:
    """slurm.conf and what must lie beside it, and the pretend GPUs."""
    for gpu in range(GPUS):  # a device file each is what makes SLURM number them in CUDA_VISIBLE_DEVICES
        device = layout.folder / "dev" / f"gpu{gpu}"
        device.unlink(missing_ok=True)
        device.symlink_to("/dev/null")
    etc = layout.conf.parent
    (etc / "gres.conf").write_text(
        f"NodeName={','.join(node_names())} Name=gpu File={layout.folder}/dev/gpu[0-{GPUS - 1}]\n"
    )
    # Never used without a cgroup plugin, but its autodetection ends slurmd inside a container.
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (etc / "plugstack.conf").write_text("")
    layout.conf.write_text(slurm_conf(layout, settings))


def slurm_conf(layout: Layout, settings: Settings) -> str:
    """The file as text. Most of it makes things happen at once that a real cluster does twice a minute."""
    host, user, folder = platform.node().split(".")[0], getpass.getuser(), layout.folder
    socket_of_munge = f",socket={layout.munge_socket}" if settings.auth == "munge" else ""
    controller, _, *nodes = settings.ports
    lines = f"""\
        ClusterName=practice
        SlurmctldHost={host}(127.0.0.1)
        SlurmctldPort={controller}
        SlurmUser={user}
        SlurmdUser={user}
        AuthType=auth/{settings.auth}
        CredType=cred/{settings.auth}
        # A requeued job waits until its old credential cannot be used any more: 120 s where nothing is said.
        AuthInfo=cred_expire=5{socket_of_munge}
        StateSaveLocation={folder}/state
        SlurmdSpoolDir={folder}/spool.%n
        SlurmctldPidFile={folder}/pids/.slurmctld
        SlurmdPidFile={folder}/pids/.slurmd.%n
        SlurmctldLogFile={layout.logs}/slurmctld.log
        SlurmdLogFile={layout.logs}/slurmd.%n.log
        # Nothing that needs cgroups, systemd or root.
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        JobAcctGatherType=jobacct_gather/none
        SwitchType=switch/none
        MpiDefault=none
        MailProg=/bin/true
        PropagateResourceLimits=NONE
        SelectType=select/cons_tres
        SelectTypeParameters=CR_Core
        SlurmdParameters=config_overrides
        SchedulerType=sched/backfill
        SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
        EnforcePartLimits=ALL
        ReturnToService=2
        SlurmdTimeout=10
        SlurmctldTimeout=10
        KillWait=5
        MinJobAge=3600
        UnkillableStepTimeout=30
        JobRequeue=1
        PreemptType=preempt/partition_prio
        PreemptMode=REQUEUE
        GresTypes=gpu
        PartitionName=gpu Nodes=ALL Default=YES DefaultTime=10 MaxTime=60 PriorityTier=10 PreemptMode=OFF
        PartitionName=low Nodes=ALL DefaultTime=10 MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=8
        PartitionName=high Nodes=ALL DefaultTime=10 MaxTime=60 PriorityTier=100 PreemptMode=OFF
        """
    for name, port in zip(node_names(), nodes, strict=True):
        lines += f"NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs={CPUS} RealMemory={MEMORY} Gres=gpu:{GPUS}\n"
    return re.sub(r"^ +", "", lines + _accounting_lines(layout, settings), flags=re.MULTILINE)


def _accounting_lines(layout: Layout, settings: Settings) -> str:
    if not settings.accounting:
        return "AccountingStorageType=accounting_storage/none\n"
    password = f"AccountingStoragePass={layout.munge_socket}\n" if settings.auth == "munge" else ""
    return f"""\
        AccountingStorageType=accounting_storage/slurmdbd
        AccountingStorageHost=127.0.0.1
        AccountingStoragePort={settings.ports[1]}
        AccountingStorageTRES=gres/gpu
        AccountingStorageEnforce=associations,limits,qos
        {password}"""
