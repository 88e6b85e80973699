"""An import that is killed with SIGKILL at a named moment: ``import_and_die.py STORE RUNS ARTIFACTS MOMENT``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from monitoring import mirror
from monitoring.store import open_store


def dying_after(function: str) -> None:
    real = getattr(mirror, function)

    def wrapped(*args, **kwargs):
        real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(mirror, function, wrapped)


path, runs, artifacts, moment = sys.argv[1:]
if moment != "none":
    dying_after(moment)
store = open_store(Path(path), print)
store.execute("PRAGMA cache_size = 50")  # a few pages: most of the transaction is in the file before its commit
print("importing", flush=True)
for outcome in mirror.Mirror(store, lambda: [Path(runs)], Path(artifacts)).update():
    print(outcome, flush=True)
