"""How the run's data names and measures things: notes, and the mels of its manifest."""

from __future__ import annotations

from typing import Any

from models.features import MelSpec

NOTES = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")


def note_name(midi: int) -> str:
    """60 -> C4."""
    return f"{NOTES[midi % 12]}{midi // 12 - 1}"


def mel_spec(info: dict[str, Any]) -> MelSpec:
    """How the run's data computed its mels."""
    mel = {k: v for k, v in info["mel"].items() if k != "compression"}
    return MelSpec(sample_rate=info["sample_rate"], **mel)
