"""What scontrol says about jobs."""

from __future__ import annotations

import re
from dataclasses import dataclass

RUNNING_STATES = ("RUNNING", "SIGNALING", "COMPLETING", "SUSPENDED", "STOPPED", "CONFIGURING")
LIVE_STATES = ("PENDING", *RUNNING_STATES)


@dataclass(frozen=True)
class Job:
    """One line of ``scontrol -o show job``. ``restarts`` is how often it was requeued; ``fields`` has all that was said."""

    id: str
    state: str
    reason: str
    partition: str
    nodes: tuple[str, ...]
    restarts: int
    exit_code: str
    fields: dict[str, str]

    @property
    def live(self) -> bool:
        """Whether it may still do something."""
        return self.state in LIVE_STATES

    @classmethod
    def parse(cls, line: str) -> Job:
        fields = dict(re.findall(r"([\w:/]+)=(\S*)", line))
        nodes = fields.get("NodeList", "")
        return cls(
            id=fields["JobId"],
            state=fields["JobState"],
            reason=fields.get("Reason", ""),
            partition=fields.get("Partition", ""),
            nodes=() if nodes in ("", "(null)") else expand(nodes),
            restarts=int(fields.get("Restarts", 0)),
            exit_code=fields.get("ExitCode", ""),
            fields=fields,
        )


def parse(text: str) -> list[Job]:
    return [Job.parse(line) for line in text.splitlines() if line.startswith("JobId=")]


def expand(nodes: str) -> tuple[str, ...]:
    """``127.0.0.[11-12,14]`` as names.

    >>> expand("127.0.0.[11-12,14]")
    ('127.0.0.11', '127.0.0.12', '127.0.0.14')
    """
    found: list[str] = []
    for prefix, ranges in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?", nodes):
        if not ranges:
            found.append(prefix)
            continue
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            found += [f"{prefix}{number:0{len(first)}}" for number in numbers]
    return tuple(found)
