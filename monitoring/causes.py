"""Why runs end: the catalogue. Each cause is known by the words that it leaves behind, and says what happened and what to do.

The first entry whose words are found decides about a piece of evidence, so what is special stands before what is general. An echo is
what other ranks say when one has gone, or SLURM when it clears up: it counts only where nobody said more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """``pattern`` is searched in what was said. ``what`` and ``do`` may name {run} {config} {step} {rank} {node} {micro_batch} {said}.

    ``echo``: see above. ``ours``: somebody meant it, or it is SLURM's ordinary course; nothing is broken.
    """

    name: str
    pattern: re.Pattern[str]
    what: str
    do: str
    echo: bool = False
    ours: bool = False


def cause(name: str, pattern: str, what: str, do: str, *, echo: bool = False, ours: bool = False) -> Cause:
    return Cause(name, re.compile(pattern, re.IGNORECASE | re.MULTILINE), what, do, echo, ours)


AGAIN = "python jobs/launch.py --resume {run}"
LOGS = "read python monitoring/logs.py {run} --rank {rank}"

CATALOGUE = (
    # -- memory and disk
    cause("gpu_memory", r"CUDA( error:)? out of memory|CU(BLAS|FFT|DNN)\w*_ALLOC_FAILED|torch\.(cuda\.)?OutOfMemoryError",
          "out of GPU memory",
          AGAIN + " --set trainer.micro_batch={micro_batch}, or --set trainer.activation_checkpointing=true (slower)"),
    cause("shared_memory", r"Unexpected bus error|/dev/shm|unable to (open|resize|mmap) shared memory|signal SIGBUS",
          "no room in shared memory (/dev/shm), where loader workers hand over batches",
          AGAIN + " --set data.workers=2, or ask the site for a larger /dev/shm"),
    cause("host_memory", r"oom.?kill|OUT_OF_MEMORY|\bMemoryError\b|can't allocate memory|Cannot allocate memory|out-of-memory handler",
          "out of the host's memory", AGAIN + " --set data.workers=1, or raise mem_per_gpu in the cluster's profile"),
    cause("disk_full", r"No space left on device|Disk quota exceeded|File too large|save_failed",
          "no room on the disk of the runs", "make room (quota -s; old checkpoints), then " + AGAIN),
    cause("read_only", r"Read-only file system|Permission denied",
          "something could not be written: {said}", "mend the folder's permissions or mount, then " + AGAIN),
    # -- the training itself
    cause("spike", r"the loss leapt", "the loss leapt: {said}",
          AGAIN + " --set optimizer.lr=... (lower), or trainer.grad_clip"),
    cause("not_finite", r"the (loss|norm of the gradient).* is (nan|-?inf)", "{said}",
          AGAIN + " --set optimizer.lr=... (lower), or trainer.grad_clip=1.0"),
    cause("hang", r"^hung |exit code 70\b", "a rank stood still until the watchdog ended the job: {said}",
          "look at the stacks; if nothing in the code waits there, leave the node out and " + AGAIN),
    cause("no_progress", r"starts have not got beyond step", "{said}",
          "the first of those attempts says more: " + LOGS + "; a smaller trainer.save_every saves sooner"),
    # -- data and weights
    cause("data_damaged", r"no intact \w+ sample left|stand-in",
          "the dataset is damaged beyond what can be replaced: {said}", "prepare it again: it rewrites what is not intact"),
    cause("data_missing", r"no prepared data|manifest\.json.* (is missing|is damaged)|holds no samples", "{said}",
          "prepare the data where the job can read it, then " + AGAIN),
    cause("weights_missing", r"SLURMPHONY_WEIGHTS|fetch_weights\.py", "pretrained weights are missing: {said}",
          "fetch them on a machine with internet, set SLURMPHONY_WEIGHTS or weights in the cluster's profile, then " + AGAIN),
    cause("other_architecture", r"do not fit this config|was trained with .* this run has", "{said}",
          "launch a new run for another architecture: python jobs/launch.py {config} --new"),
    cause("loader_worker", r"^.*Loader worker \d+ ", "a loader worker died: {said}",
          "often memory: " + AGAIN + " --set data.workers=1"),
    # -- hardware and network
    cause("bad_node", r"not fit to train on|products are wrong|node_excluded",
          "a node is not sound: {said}", "nothing, it is left out for a day; tell the site. Then " + AGAIN),
    cause("gpu_fault", r"uncorrectable ECC|\bXid\b|CUDA error: (an illegal|misaligned|unspecified|hardware|device-side)|has fallen off",
          "a GPU failed: {said}", "tell the site about node {node}; launched again it may pass the gate on another: " + AGAIN),
    cause("node_failed", r"DUE TO NODE FAILURE|NODE_FAIL|went DOWN|NOT_RESPONDING",
          "a node went down", "nothing if it was requeued; else " + AGAIN),
    cause("no_port", r"no free port from|Address already in use|EADDRINUSE",
          "no port was free for the ranks to meet at", "look at what listens on {node} (ss -ltn), then " + AGAIN),
    cause("no_rendezvous", r"did not publish its address", "the ranks did not find rank 0",
          "rank 0's log says why it was late: python monitoring/logs.py {run} --rank 0"),
    cause("nccl", r"ncclSystemError|ncclInternalError|ncclUnhandledCudaError|NCCL WARN|no socket interface found",
          "NCCL failed: {said}", "check interface in the cluster's profile (ip addr on a node); NCCL_DEBUG=INFO says more"),
    # -- the environment
    cause("missing_module", r"ModuleNotFoundError|ImportError|GLIBC_|cannot open shared object file",
          "the environment lacks something: {said}", "make setup on the login node, then " + AGAIN),
    cause("segfault", r"SIGSEGV|Segmentation fault|exit code (-11|139)\b", "a rank crashed in native code (segmentation fault)",
          "check that torch and the driver match (nvidia-smi); logs/failed_rank*.txt, then " + AGAIN),
    # -- somebody meant it
    cause("cancelled", r"^cancelled\b", "cancelled by hand", AGAIN, ours=True),
    cause("interrupted", r"^end interrupted", "stopped by hand, and saved", AGAIN, ours=True),
    cause("superseded", r"^superseded", "a later attempt took over", "nothing", ours=True),
    cause("preempted", r"DUE TO PREEMPTION|\bPREEMPTED\b", "preempted by a more urgent job",
          "nothing if it was requeued; else " + AGAIN, ours=True),
    cause("time_limit", r"DUE TO TIME LIMIT|(?-i:\bTIMEOUT\b)|^end warned", "the job's time was over",
          "nothing if it was requeued; else " + AGAIN + " --time H:MM:SS", ours=True),
    cause("requeue_failed", r"^requeue_failed", "it was to come back, and SLURM refused: {said}", AGAIN),
    # -- echoes, then what is general
    cause("lost_peer", r"Connection (closed|reset|refused)|Broken pipe|ncclRemoteError|collective operation timeout|timed out",
          "a rank lost the others; which one went first nobody wrote down", LOGS, echo=True),
    cause("user_error", r"^(UserError|error): ", "{said}", "mend that, then " + AGAIN),
    cause("exception", r"^\w*(Error|Exception|Failed|Interrupt)\b", "{said}", LOGS),
    cause("killed", r"SIGKILL|exit code (137|-9)\b|: Killed\b|^killed", "a rank was killed from outside (SIGKILL)",
          "often the host's memory (dmesg | grep -i oom on {node}), or a person; " + AGAIN),
    cause("terminated", r"SIGTERM|^end terminated|CANCELLED AT|exit code (143|-15)\b", "ended from outside (SIGTERM)",
          AGAIN, echo=True),
)  # fmt: skip

ALONE = cause(
    "silent", r"", "it ended without a word", "often SIGKILL to all of it, or a host that went down; " + AGAIN
)


def cause_of(text: str) -> Cause | None:
    """The cause whose words ``text`` holds."""
    return next((found for found in CATALOGUE if found.pattern.search(text)), None)
