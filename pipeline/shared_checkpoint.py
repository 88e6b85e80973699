"""A checkpoint that all ranks write together, each of them one file, with the same guarantee: whole or not there.

What is spread over ranks is gathered one tensor at a time; the rank that has the fewest bytes so far keeps it. So a rank never holds
more than its share of the checkpoint and one tensor, in main memory, and the files say nothing of how many ranks there were: any
number of them, and any strategy, can go on from it.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from pipeline.checkpoint import (
    Checkpoint,
    Entry,
    Leaf,
    aside_name,
    commit,
    folder_name,
    take_leaves,
    write_tensors,
)
from pipeline.distributed import Agreement


def save_together(folder: Path, checkpoint: Checkpoint, ranks: Agreement) -> None:
    """``checkpoint.save`` as a collective: every rank calls it with the same names in the same order.

    When it returns the checkpoint is complete and durable; one that is there already stays. Raises OSError on all ranks where one of
    them could not write; nothing is left of it then.
    """
    rank, final = ranks.world.rank, folder / folder_name(checkpoint.step)
    if ranks.maximum(int(final.exists())):
        return
    leaves: dict[str, Leaf] = {}
    skeletons = {name: take_leaves(part, leaves, name) for name, part in checkpoint.parts.items()}
    share = _own_share(leaves, rank, ranks.world.size)
    aside = _make_aside(folder, checkpoint.step, ranks)
    entry: Entry | None = None
    failure = 0
    try:
        entry = write_tensors(aside / file_name(rank, ranks.world.size), share)
    except OSError as error:
        failure = error.errno or errno.EIO
    _raise_together(failure, aside, ranks)
    rows = ranks.gather(_to_row(entry))
    try:
        if rank == 0:
            entries = {file_name(i, len(rows)): _from_row(row) for i, row in enumerate(rows)}
            commit(aside, final, entries, {**checkpoint.state, "step": checkpoint.step, "parts": skeletons})
    except OSError as error:
        failure = error.errno or errno.EIO
    _raise_together(failure, aside, ranks)


def file_name(rank: int, ranks: int) -> str:
    return f"shard-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def _own_share(leaves: dict[str, Leaf], rank: int, ranks: int) -> dict[str, Tensor]:
    """Gather every tensor with all ranks and keep this rank's; who keeps which follows from the sizes alone."""
    kept = [0] * ranks
    share = {}
    for name, leaf in leaves.items():
        tensor = leaf if isinstance(leaf, Tensor) else leaf()
        owner = kept.index(min(kept))
        kept[owner] += tensor.nbytes
        if owner == rank:
            share[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return share


def _make_aside(folder: Path, step: int, ranks: Agreement) -> Path:
    """Rank 0 makes the folder to write in; its process id makes the name this attempt's own. OSError on all ranks where it cannot."""
    aside = aside_name(folder, step, ranks.maximum(os.getpid() if ranks.world.rank == 0 else 0))
    failure = 0
    try:
        if ranks.world.rank == 0:
            aside.mkdir()
    except OSError as error:
        failure = error.errno or errno.EIO
    _raise_together(failure, aside, ranks)
    return aside


def _raise_together(failure: int, aside: Path, ranks: Agreement) -> None:
    """OSError on every rank where any rank brings an error number; rank 0 removes what was written."""
    number = ranks.maximum(failure)
    if number:
        if ranks.world.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        raise OSError(number, os.strerror(number), str(aside))


def _to_row(entry: Entry | None) -> Tensor:
    """Size and hash as int64 (3,), so that they travel without being pickled."""
    assert entry is not None
    digest = bytes.fromhex(entry["xxh3_128"])
    halves = [int.from_bytes(half, "big", signed=True) for half in (digest[:8], digest[8:])]
    return torch.tensor([entry["size"], *halves])


def _from_row(row: Tensor) -> Entry:
    size, *halves = row.tolist()
    return {"size": size, "xxh3_128": b"".join(half.to_bytes(8, "big", signed=True) for half in halves).hex()}
