"""Where cluster profiles lie, and what they are called. Apart from what reads them (``jobs.clusters``), which takes longer to load."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError, nearest

PROFILES = Path(__file__).resolve().parent.parent / "configs" / "clusters"


def profile_names() -> list[str]:
    return sorted(p.stem for p in PROFILES.glob("*.yaml"))


def profile_file(name: str) -> Path:
    """The file of the profile ``name``; UserError lists the profiles where there is none."""
    names = profile_names()
    if name not in names:
        raise UserError(
            f"no cluster '{name}' in configs/clusters/.{nearest(name, names)} There are: {', '.join(names)}. A new one: "
            f"cp configs/clusters/default.yaml configs/clusters/{name}.yaml, and fill it in."
        )
    return PROFILES / f"{name}.yaml"
