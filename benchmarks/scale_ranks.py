"""So many ranks of ``benchmarks/scale.py``'s rendezvous: threads, each with a connection of its own. Imports torch's store and no more.

python benchmarks/scale_ranks.py PORT THREADS RANKS
"""

from __future__ import annotations

import sys
import threading
from datetime import timedelta

from torch.distributed import TCPStore

PATIENCE = timedelta(seconds=300)


def rank(port: int, ranks: int) -> None:
    """Connect, check the token, and wait for all; the last to come lets them go on."""
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENCE)
    if store.get("token") != b"here":
        raise SystemExit(f"who answers at port {port} is another run's store; run the benchmark again.")
    if store.add("met", 1) == ranks:
        store.set("all", "")
    store.wait(["all"])


def main() -> None:
    port, count, ranks = map(int, sys.argv[1:])
    gate = TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENCE)
    gate.add("ready", 1)  # torch is imported: that is no part of a rendezvous
    gate.wait(["go"])
    threads = [threading.Thread(target=rank, args=(port, ranks)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
