"""The last collectives of this rank, from torch's flight recorder: which ones it has entered, and which have come to an end.

Torch writes them as pickles when NCCL times out; nothing that may be a stranger's is ever unpickled, so a hang that we end ourselves
leaves them as JSON, which torch gives as well (without stacks: those are written beside it). ``jobs.rendezvous`` switches the recorder on.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from pipeline.files import write_json

PATIENCE = 5.0  # seconds: a device that hangs may let its recorder hang, too
RECORDERS = {"gloo": "_dump_fr_trace_json", "nccl": "_dump_nccl_trace_json"}  # torch keeps one a kind of device


def write_collectives(path: Path) -> None:
    """Write what the recorders hold, where there is anything and within five seconds; whatever fails is left out.

    For the moment at which a rank is about to be ended: never raises OSError, never waits for long.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_initialized():
        return
    thread = threading.Thread(target=_write, args=(path,), name="flight recorder", daemon=True)
    thread.start()
    thread.join(PATIENCE)


def _write(path: Path) -> None:
    from torch._C import _distributed_c10d as recorders

    found: dict[str, Any] = {}
    for kind, name in RECORDERS.items():
        recorder = getattr(recorders, name, None)
        if recorder is not None:
            found[kind] = json.loads(recorder(True, False))
    try:
        write_json(path, found, durable=False)
    except OSError as error:
        print(f"warning: {path} cannot be written ({error.strerror})", file=sys.stderr, flush=True)
