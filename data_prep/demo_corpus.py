"""What rendering any demo corpus needs: several processes, whole or absent, the same bytes for the same seed, never twice.

<out>/<top>/          the corpus, in the real layout
<out>/LICENCE.txt     what it was made with
<out>/made.json       what it was made of
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.claims import is_dead
from data_prep.plan import code_version
from data_prep.synth import SOUNDFONT_CREDIT, soundfont
from pipeline import processes
from pipeline.errors import UserError
from pipeline.files import read_json, write_json

MADE = "made.json"
LICENCE = f"Demo corpus rendered by data_prep/demo.py: music of its own composition, sounds from {SOUNDFONT_CREDIT}."


@dataclass(frozen=True)
class Corpus:
    """``render(folder, job)`` writes one track below ``folder``, the later ``top``; a module-level function, as the jobs' class is.

    ``code``: the modules that decide the bytes. ``ending(folder)`` writes what describes all tracks together.
    """

    top: str
    code: tuple[str, ...]
    render: Callable[[Path, Any], None]
    least: int
    why_least: str
    licence: str = LICENCE
    ending: Callable[[Path], None] | None = None

    def write(
        self, out: Path, jobs: Callable[[int, int], Sequence[Any]], tracks: int, seed: int, workers: int | None
    ) -> Iterator[int]:
        """Render ``jobs(tracks, seed)`` into ``out``; yields the number of tracks done as they come.

        Where the same corpus lies there already, nothing is done. Raises UserError where ``tracks`` is too few, another corpus lies
        there, or ``out`` cannot be written.
        """
        if tracks < self.least:
            raise UserError(f"--tracks {tracks} is too few: {self.why_least}, so {self.least} at least.")
        soundfont()
        target, made = out / self.top, {"tracks": tracks, "seed": seed, "code": code_version(self.code)}
        there = read_json(out / MADE) if out.is_dir() else None
        if target.exists() and there == made:
            return
        if target.exists() or there not in (None, made):
            raise UserError(f"{out} holds another demo corpus already; choose another --out, or remove it first.")
        aside = self._empty_aside(out)
        work = jobs(tracks, seed)
        count = workers or min(os.cpu_count() or 1, len(work))
        try:
            with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
                chunk = max(1, min(4, len(work) // (4 * count)))
                for done, _ in enumerate(pool.map(self.render, [aside] * len(work), work, chunksize=chunk), start=1):
                    yield done
            if self.ending is not None:
                self.ending(aside)
            (out / "LICENCE.txt").write_text(self.licence + "\n")
            write_json(out / MADE, made)
            aside.rename(target)  # a corpus is whole or absent
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _empty_aside(self, out: Path) -> Path:
        """A folder of this process to render into; what killed processes left is removed."""
        for path in out.glob(f".{self.top}-*"):
            if is_dead(path.name.partition("-")[2], 0.0):
                shutil.rmtree(path)
        aside = out / f".{self.top}-{processes.token()}"
        try:
            aside.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error.strerror}; choose another --out.") from error
        return aside


def shares(tracks: int, valid: float, test: float, least: int) -> tuple[tuple[str, int], ...]:
    """How many of ``tracks`` go to (train, valid, test), at least ``least`` to each."""
    of_valid, of_test = max(least, round(tracks * valid)), max(least, round(tracks * test))
    return ("train", tracks - of_valid - of_test), ("valid", of_valid), ("test", of_test)
