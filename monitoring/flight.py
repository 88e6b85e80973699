"""Which rank did not come to a collective, by what the flight recorders of all ranks held when they hung (``pipeline.flight``).

Ranks enter the collectives of a group in one order, and number them alike: the others wait for whoever has the lowest number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import read_json
from pipeline.runs import RunFolder

LARGEST = 16 << 20  # bytes of one rank's file: 2,000 collectives take less than one MB
PICKLES = "nccl_trace_rank_"  # what torch itself writes when NCCL times out

Entries = list[dict[str, Any]]


def lagging(run: RunFolder, step: int) -> dict[int, str]:
    """By rank, which collective it never entered while others waited in it, after ``step``; empty where that tells none apart."""
    dumps = {
        int(path.stem.removeprefix("hung_rank").partition("_")[0]): read_json(path)
        for path in run.logs.glob(f"hung_rank*_step{step}_collectives.json")
        if path.stat().st_size <= LARGEST
    }
    found: dict[int, str] = {}
    for group, by_rank in _groups(dumps).items():
        counts = {
            rank: max((int(e["collective_seq_id"]) for e in entries), default=0) for rank, entries in by_rank.items()
        }
        furthest = max(counts.values())
        for rank, count in sorted(counts.items()):
            if count < furthest:
                found.setdefault(rank, _sentence(rank, group, count + 1, by_rank))
    return found if len(found) < len(dumps) else {}


def _groups(dumps: Mapping[int, Any]) -> dict[str, dict[int, Entries]]:
    """By process group, each rank's collectives; a rank that has none in a group that others use has an empty list."""
    found: dict[str, dict[int, Entries]] = {}
    for rank, tree in dumps.items():
        for kind in tree.values() if isinstance(tree, dict) else ():
            for entry in kind.get("entries", ()) if isinstance(kind, dict) else ():
                if (
                    isinstance(entry, dict)
                    and not entry.get("is_p2p")
                    and isinstance(entry.get("collective_seq_id"), int)
                ):
                    group = str(entry.get("process_group"))
                    found.setdefault(group, {r: [] for r in dumps})[rank].append(entry)
    return found


def _sentence(rank: int, group: str, number: int, by_rank: Mapping[int, Entries]) -> str:
    others = [r for r, entries in sorted(by_rank.items()) if any(e["collective_seq_id"] == number for e in entries)]
    entry = next((e for r in others for e in by_rank[r] if e["collective_seq_id"] == number), None)
    what = f"{entry.get('profiling_name')} of {entry.get('input_sizes')}" if entry else "the next collective"
    waiting = (
        f"rank {', '.join(map(str, others))} wait{'s' if len(others) == 1 else ''} in it"
        if others
        else "others are past it"
    )
    return f"rank {rank} never entered collective {number} of group {group} ({what}); {waiting}"


def pickles(run: RunFolder, since: float) -> list[Path]:
    """What torch itself has left of NCCL's collectives since a moment; pickles, so nothing here ever reads them."""
    return sorted(path for path in run.logs.glob(f"{PICKLES}*") if path.stat().st_mtime >= since)
