"""What a cluster needs besides slurmctld and slurmd: munge, and for accounting MariaDB and slurmdbd."""

from __future__ import annotations

import getpass
import secrets
import subprocess
from pathlib import Path

from pipeline.errors import RunFailed, UserError
from tests.cluster import processes
from tests.cluster.layout import Layout, Settings, program

ACCOUNT = "practice"
SYSTEM_TABLES = [Path("/usr/share") / name / "mysql_system_tables.sql" for name in ("mysql", "mariadb")]


def tail(log: Path, lines: int = 8) -> str:
    """The end of a log, for a message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else "(no log)"


def quietly(command: list[str], env: dict[str, str] | None = None) -> bool:
    """Whether a command succeeds."""
    return subprocess.run(command, env=env, capture_output=True).returncode == 0


def start_munge(layout: Layout) -> None:
    """munged with a key and a socket of its own."""
    layout.munge.mkdir(exist_ok=True)
    layout.munge.chmod(0o711)
    key = layout.munge / "key"
    if not key.exists():
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
    files = {"key-file": key, "socket": layout.munge_socket}
    files |= {f"{name}-file": layout.munge / name for name in ("pid", "seed")}
    options = [f"--{name}={path}" for name, path in files.items()]
    # --force: the folder may lie below one that only its user may enter; so may we.
    command = [program("munged"), "--foreground", "--force", "--num-threads=2", *options]
    daemon = processes.start(command, layout.record("munged"), layout.output("munged"))
    if not processes.wait_until(lambda: layout.munge_socket.exists() or not processes.alive(daemon), 10):
        raise RunFailed(f"munged made no socket within 10 s:\n{tail(layout.output('munged'))}")
    if not processes.alive(daemon):
        raise RunFailed(f"munged ended at once:\n{tail(layout.output('munged'))}")


def start_accounting(layout: Layout, settings: Settings, env: dict[str, str]) -> None:
    """MariaDB, slurmdbd, and in it our cluster, one account and ourselves."""
    fresh = not layout.database.exists()
    _start_database(layout)
    _start_dbd(layout, settings, env)
    if fresh:
        manager = [program("sacctmgr"), "--immediate", "add"]
        user = ["user", getpass.getuser(), f"account={ACCOUNT}"]
        for words in (["cluster", "practice"], ["account", ACCOUNT, "cluster=practice"], user):
            subprocess.run(
                [*manager, *words], env=env, capture_output=True
            )  # root exists already, and that is no error


def _start_database(layout: Layout) -> None:
    """A MariaDB that only its socket leads to. It may forget what a power cut would take: that makes it quick."""
    fresh = not layout.database.exists()
    (layout.database / "mysql").mkdir(parents=True, exist_ok=True)
    options = {
        "datadir": layout.database,
        "socket": layout.database_socket,
        "pid-file": layout.database / "pid",
        "user": getpass.getuser(),
        "innodb-buffer-pool-size": "32M",
        "innodb-log-file-size": "8M",
        "innodb-lock-wait-timeout": 900,  # slurmdbd complains below that
        "innodb-flush-log-at-trx-commit": 0,
        "innodb-flush-method": "nosync",
        "sync-frm": 0,
        "performance-schema": "OFF",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    # No tables of users yet, and none wanted: who may open the socket's folder may use it.
    command = [program("mariadbd"), "--no-defaults", "--skip-grant-tables", "--skip-networking", *words]
    log = layout.output("mariadbd")
    daemon = processes.start(command, layout.record("mariadbd"), log)
    client = [program("mariadb"), "--no-defaults", f"--socket={layout.database_socket}"]
    ready = lambda: quietly([*client, "--execute=select 1"])  # noqa: E731
    if not processes.wait_until(lambda: not processes.alive(daemon) or ready(), 20, 0.05) or not processes.alive(
        daemon
    ):
        raise RunFailed(f"MariaDB did not start:\n{tail(log)}")
    if fresh:  # slurmdbd keeps procedures, and procedures want MariaDB's own tables
        tables = next((path for path in SYSTEM_TABLES if path.is_file()), None)
        if tables is None:
            raise UserError(f"MariaDB's {SYSTEM_TABLES[0]} is missing; install mariadb-server")
        with tables.open() as statements:
            subprocess.run([*client, "mysql"], stdin=statements, check=True, capture_output=True)


def _start_dbd(layout: Layout, settings: Settings, env: dict[str, str]) -> None:
    munge = f"AuthInfo=socket={layout.munge_socket}\n" if settings.auth == "munge" else ""
    layout.dbd_conf.touch(0o600)  # slurmdbd reads it only where nobody else can
    layout.dbd_conf.write_text(
        f"AuthType=auth/{settings.auth}\n{munge}"
        f"DbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={settings.ports[1]}\nSlurmUser={getpass.getuser()}\n"
        f"LogFile={layout.logs}/slurmdbd.log\nPidFile={layout.records}/.slurmdbd\n"
        "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=root\nStorageLoc=slurm\n"
    )
    # "localhost" means the socket to MariaDB's library, and this variable says which; slurmdbd has no option for it.
    found = {**env, "MYSQL_UNIX_PORT": str(layout.database_socket)}
    daemon = processes.start([program("slurmdbd"), "-D"], layout.record("slurmdbd"), layout.output("slurmdbd"), found)
    asked = [program("sacctmgr"), "--noheader", "show", "cluster"]
    if not processes.wait_until(lambda: not processes.alive(daemon) or quietly(asked, env), 30, 0.05):
        raise RunFailed(f"slurmdbd did not answer within 30 s:\n{tail(layout.output('slurmdbd'))}")
    if not processes.alive(daemon):
        raise RunFailed(f"slurmdbd ended at once:\n{tail(layout.output('slurmdbd'))}")
