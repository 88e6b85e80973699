"""One pretend node: ``python node.py slurmd ...`` starts slurmd and stays the ancestor of all that is ever started on the node.

slurmstepd and many a task leave their parents; the kernel then hands them to the nearest "subreaper", which is this process. So a
power cut finds all of a node, and nothing else, without cgroups, namespaces or root. SIGUSR1 starts slurmd once more. It knows
nothing of this project: a second of our imports three times over is what starting a cluster must not cost.
"""

import ctypes
import os
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this kernel knows no subreaper")
    awaited = {signal.SIGCHLD, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    boot()
    while True:
        if signal.sigwait(awaited) == signal.SIGUSR1:
            boot()
        bury()


def boot() -> None:
    os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, setsigmask=[])  # our mask must not reach the jobs


def bury() -> None:
    """Reap whatever has ended; one SIGCHLD may stand for many."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:  # nobody is left: slurmd has ended, and may be started again
        return


main()
