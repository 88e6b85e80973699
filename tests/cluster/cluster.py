"""A whole practice cluster: up and down, jobs submitted and waited for, nodes that die and come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipeline.errors import RunFailed, UserError
from tests.cluster import jobs, processes, services
from tests.cluster.jobs import Job
from tests.cluster.layout import (
    ACCOUNTING_PACKAGES,
    PACKAGES,
    Layout,
    Settings,
    missing_programs,
    node_names,
    program,
    write_configuration,
)

SUPERVISOR = Path(__file__).with_name("node.py")
SERVICES = ("slurmctld", "slurmdbd", "mariadbd", "munged")  # in the order in which they are stopped


class Cluster:
    """Three nodes of four pretend GPUs in ``folder``. Several at once do not meet: ports, key and socket are their own.

    Usable from several processes: what runs is recorded in the folder, not here.
    """

    def __init__(self, folder: Path, *, accounting: bool = False, auth: str | None = None) -> None:
        self.layout = Layout(folder.absolute())
        self.accounting = accounting
        self._auth = auth
        self.nodes = node_names()

    # -- up and down --------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Start it and wait until all nodes are idle; harmless where it is up. Job ids go on from the last time."""
        if self.is_up:
            self._refuse_other_kind()
            return
        lacking = missing_programs(accounting=self.accounting)
        if lacking:
            packages = f"{PACKAGES} {ACCOUNTING_PACKAGES}" if self.accounting else PACKAGES
            raise UserError(f"this machine lacks {', '.join(lacking)}; install SLURM: {packages}")
        self.down()  # what is left of one that half died
        self.layout.make()
        settings = Settings.choose(accounting=self.accounting, auth=self._auth)
        write_configuration(self.layout, settings)
        try:
            if settings.auth == "munge":
                services.start_munge(self.layout)
            if self.accounting:
                services.start_accounting(self.layout, settings, self._environment())
            self.up_controller()
            for node in self.nodes:
                self._boot(node)
            self.wait_for_nodes()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Cancel what is queued and end every process; the folder stays, with logs and job numbers."""
        if self._service("slurmctld"):  # a job that only lost its nodes would rise again at the next `up`
            self.run("scancel", f"--user={os.getuid()}", check=False)
            self.down_controller()  # first: it would wait for nodes that do not answer
        for node in self.nodes:
            self._cut_power(node)
        for name in SERVICES:
            processes.stop(self._service(name))
            self.layout.record(name).unlink(missing_ok=True)
        processes.kill(self._stray())

    @property
    def is_up(self) -> bool:
        """Whether its controller runs."""
        return self._service("slurmctld") is not None

    def _refuse_other_kind(self) -> None:
        if (self._service("slurmdbd") is not None) != self.accounting:
            kind = "without" if self.accounting else "with"
            raise UserError(f"the cluster in {self.layout.folder} is up {kind} accounting; take it down first.")

    def up_controller(self) -> None:
        """Start slurmctld; where it was down, it knows its jobs again."""
        command = [program("slurmctld"), "-D", "-f", str(self.layout.conf)]
        daemon = processes.start(
            command, self.layout.record("slurmctld"), self.layout.output("slurmctld"), self._environment()
        )
        if not processes.wait_until(lambda: not processes.alive(daemon) or self._controller_answers(), 20):
            raise RunFailed(f"slurmctld did not answer within 20 s:\n{services.tail(self.layout.output('slurmctld'))}")
        if not processes.alive(daemon):
            raise RunFailed(f"slurmctld ended at once:\n{services.tail(self.layout.output('slurmctld'))}")

    def down_controller(self) -> None:
        """Stop slurmctld alone: jobs run on, commands say that they cannot reach it."""
        processes.stop(self._service("slurmctld"))

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        """Within the block there is no slurmctld."""
        self.down_controller()
        try:
            yield
        finally:
            self.up_controller()

    def _controller_answers(self) -> bool:
        return self.run("scontrol", "ping", check=False).returncode == 0

    # -- commands -----------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find this cluster, on top of its own environment."""
        return {"SLURM_CONF": str(self.layout.conf)}

    def _environment(self) -> dict[str, str]:
        """Our own without what an outer SLURM may have left in it, and this cluster."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN", "SQUEUE", "SINFO"))}
        return own | self.environment

    def run(
        self, name: str, *words: object, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run one of SLURM's commands against this cluster; RunFailed with what it said."""
        command = [program(name), *map(str, words)]
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise RunFailed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done

    def sbatch(self, *words: object) -> str:
        """Queue a batch job; its id."""
        return self.run("sbatch", "--parsable", *words).stdout.strip().partition(";")[0]

    # -- jobs ---------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """All jobs since the cluster's first `up` that ended less than an hour ago."""
        return jobs.parse(self.run("scontrol", "--oneliner", "show", "job").stdout)

    def job(self, job: str) -> Job:
        return jobs.parse(self.run("scontrol", "--oneliner", "show", "job", job).stdout)[0]

    def wait(self, job: str, *states: str, timeout: float = 30, restarts: int = 0) -> Job:
        """Wait until a job is in one of ``states``, requeued at least ``restarts`` times; TimeoutError says how it stands."""
        deadline = time.monotonic() + timeout
        while (now := self.job(job)).state not in states or now.restarts < restarts:
            if time.monotonic() > deadline:
                wanted = f"{' or '.join(states)} with {restarts} or more restarts"
                raise TimeoutError(f"after {timeout:.0f} s job {job} is not {wanted}, but: {now}")
            time.sleep(0.05)
        return now

    def cancel_all(self, timeout: float = 30) -> None:
        """Leave no job behind. Tasks are killed first: to a job that has none SLURM grants no time to end."""
        mine = f"--user={os.getuid()}"
        self.run("scancel", mine, "--state=PENDING", check=False)  # they must not start on what becomes free
        deadline = time.monotonic() + timeout
        while left := [job for job in self.jobs() if job.live]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout:.0f} s these jobs are still there: {left}")
            # srun ends by itself; were it killed, slurmstepd would try for seconds to tell it how its tasks ended.
            processes.kill(task for task in self.tasks() if processes.name_of(task) != "srun")
            time.sleep(0.2)
            self.run("scancel", mine, check=False)

    def time_out(self, job: str, seconds: int) -> None:
        """Move a running job's time limit to ``seconds`` from now. SLURM looks at limits every 30 s, so it may act that much later."""
        self.run("scontrol", "update", f"JobId={job}", f"EndTime=now+{seconds}")

    # -- nodes --------------------------------------------------------------------------------------------------

    def crash(self, node: str, *, noticed: bool = False) -> None:
        """A power cut: slurmd, slurmstepds and tasks of a node die at once. ``noticed``: the controller is told at once,
        where otherwise it finds out by itself, after SlurmdTimeout and a bit."""
        self._cut_power(node)
        if noticed:
            self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power cut")

    def kill_slurmd(self, node: str) -> None:
        """Only the daemon dies; tasks run on, and SLURM takes the node for dead."""
        processes.kill(p for p in self._on_node(node) if processes.name_of(p) == "slurmd")

    def revive(self, node: str, timeout: float = 30) -> None:
        """Start a node's slurmd again where it does not run, and wait until the node may have jobs."""
        supervisor = processes.recorded(self._node_record(node))
        if supervisor is None:
            self._boot(node)
        elif not any(processes.name_of(p) == "slurmd" for p in self._on_node(node)):
            supervisor.send_signal(signal.SIGUSR1)
        self.wait_for_nodes(node, timeout=timeout)

    def wait_for_nodes(self, *nodes: str, timeout: float = 30) -> None:
        """Wait until these nodes (left out: all) are up and answer."""
        wanted = nodes or tuple(self.nodes)

        def ready() -> bool:
            listed = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=gpu", check=False).stdout
            up = dict(line.split() for line in listed.splitlines())
            return all(up.get(node) in ("idle", "mixed", "allocated", "completing") for node in wanted)

        if not processes.wait_until(ready, timeout, 0.05):
            states = self.run("sinfo", "--Node", "--long", check=False).stdout
            raise RunFailed(f"after {timeout:.0f} s not all nodes are up:\n{states}")

    # -- processes ----------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """All that runs of this cluster: daemons, nodes, what was started on them."""
        found = [process for name in SERVICES if (process := self._service(name))]
        found += [child for service in found for child in processes.offspring(service)]
        for node in self.nodes:
            found += [p for p in (processes.recorded(self._node_record(node)),) if p] + self._on_node(node)
        return list({process.pid: process for process in [*found, *self._stray()]}.values())

    def processes_of(self, node: str) -> list[psutil.Process]:
        """All that runs on a node, its slurmd included."""
        return self._on_node(node)

    def tasks(self) -> list[psutil.Process]:
        """What jobs run: batch scripts and everything below them, without SLURM's own daemons."""
        return [task for node in self.nodes for task in self._tasks(node)]

    def _stray(self) -> list[psutil.Process]:
        """Tasks whose node is gone: there should be none, and the environment that SLURM gives them tells."""
        ours = processes.with_environment("SLURM_CONF", str(self.layout.conf))
        return [p for p in ours if processes.environment_has(p, "SLURMD_NODENAME")]

    def _service(self, name: str) -> psutil.Process | None:
        return processes.recorded(self.layout.record(name))

    def _node_record(self, node: str) -> Path:
        return self.layout.record(f"node.{node}")

    def _on_node(self, node: str) -> list[psutil.Process]:
        supervisor = processes.recorded(self._node_record(node))
        return processes.offspring(supervisor) if supervisor else []

    def _tasks(self, node: str) -> list[psutil.Process]:
        return [p for p in self._on_node(node) if processes.name_of(p) not in ("", "slurmd", "slurmstepd")]

    def _boot(self, node: str) -> None:
        slurmd = [program("slurmd"), "-D", "-f", str(self.layout.conf), "-N", node]
        command = [sys.executable, "-IS", str(SUPERVISOR), *slurmd]
        processes.start(command, self._node_record(node), self.layout.output(f"slurmd.{node}"), self._environment())

    def _cut_power(self, node: str) -> None:
        supervisor = processes.recorded(self._node_record(node))
        if supervisor:
            processes.kill_offspring(supervisor)
            processes.kill([supervisor])
        self._node_record(node).unlink(missing_ok=True)
