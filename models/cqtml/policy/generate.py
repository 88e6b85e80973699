"""As of a generator: lights for a song, by a run that was tuned on what people prefer.

--input song.wav, or --sample 0 of the held-out split; --temperature T --samples S draws outputs; --pairs N draws pairs to compare
"""

from __future__ import annotations

from models.cqtml.generator.generate import add_arguments, generate

__all__ = ["add_arguments", "generate"]
