"""Mix a whole song: raw tracks in, the mix out, with the settings that made it.

    python jobs/generate.py RUN --input raw.wav --out DIR
    python jobs/generate.py RUN --input raw.wav --reference liked.wav --out DIR     for a run that mixes after a reference
    python jobs/generate.py RUN --input raw.wav --preset DIR/settings.json --out ELSEWHERE

Written are mix.wav at the sample rate of the input, in step with it and longer by the reverb; settings.json, a preset that can be
edited and rendered again (unchanged: to the same bytes); settings.txt, a table; and pictures of equaliser, gain reduction and spectra.
The settings move with the song, smoothly; --steady sets every knob once.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from models.blocks.console.console import Rendered
from models.diff_mst import rendering, showing
from models.diff_mst.preset import Preset, read_preset
from models.diff_mst.rendering import Song
from models.diff_mst.train_module import TrainModule
from models.inputs import read_recording
from pipeline.errors import UserError
from pipeline.files import write_atomic

LOWEST_RATE = 32000  # Hz: below it the highest bands have no frequency to be tuned to
SHORTEST = 0.5  # seconds
LONGEST = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="raw tracks, one for each the run mixes; stereo is averaged",
    )
    parser.add_argument("--reference", type=Path, metavar="FILE", help="a mix to sound like, any sample rate")
    parser.add_argument(
        "--preset", type=Path, metavar="FILE", help="a settings.json: render that; of the run only its console is asked"
    )
    parser.add_argument("--steady", action="store_true", help="one setting for the whole song")


def generate(module: TrainModule, args: argparse.Namespace, data_folder: Path, out: Path) -> list[Path]:
    """Write the mix, its settings and its pictures into ``out``. UserError for inputs that cannot be used."""
    preset = None if args.preset is None else read_preset(args.preset)
    _check(module, args, preset)
    rate = _common_rate(args.input)
    tracks = _read(args.input, rate)
    if preset is None:
        preset = rendering.decided(module, _song(module, args, tracks, rate), args.steady)
    elif preset.layout.sample_rate != rate:
        print(f"The preset was made at {preset.layout.sample_rate} Hz; it is rendered at {rate} Hz.", file=sys.stderr)
        preset = preset.at(rate)
    rendered = rendering.render(tracks, preset)
    preset = replace(preset, turned_down=rendering.turned_down(rendered.mix))
    return _write(out, tracks, preset, rendered)


def _check(module: TrainModule, args: argparse.Namespace, preset: Preset | None) -> None:
    wanted = module.layout.tracks if preset is None else preset.layout.tracks
    if not args.input:
        raise UserError("say what to mix: --input raw.wav")
    if len(args.input) != wanted:
        raise UserError(
            f"--input has {len(args.input)} files; {'the preset' if preset else 'this run'} mixes {wanted}."
        )
    refers = module.model_config.reference != "none"
    if preset is not None and (args.reference or args.steady):
        raise UserError("--preset says all settings; leave --reference and --steady out.")
    if preset is None and refers and args.reference is None:
        raise UserError("this run mixes after a reference: --reference liked.wav")
    if args.reference is not None and not refers:
        raise UserError("this run learned one style and takes no reference; leave --reference out.")


def _common_rate(paths: list[Path]) -> int:
    """The sample rate of all files. UserError where they differ, or it is too low."""
    rates = {}
    for path in paths:
        try:
            facts = soundfile.info(path)
        except (soundfile.LibsndfileError, TypeError):
            read_recording(path, 48000)  # says what is wrong with it
            raise
        rates[path] = facts.samplerate
        if facts.duration > LONGEST:
            raise UserError(
                f"{path} lasts {facts.duration / 60:.0f} minutes; at most {LONGEST / 60:.0f} are mixed at once, cut it."
            )
    if len(set(rates.values())) > 1:
        shown = ", ".join(f"{path.name} {rate} Hz" for path, rate in rates.items())
        raise UserError(f"the tracks of a song need one sample rate: {shown}; convert them to one.")
    rate = rates[paths[0]]
    if rate < LOWEST_RATE:
        raise UserError(f"{paths[0]} has {rate} Hz; at least {LOWEST_RATE} Hz are needed to tune the highest bands.")
    return rate


def _read(paths: list[Path], rate: int) -> np.ndarray:
    """(N, n) at ``rate``, all as long as the longest."""
    waves = [read_recording(path, rate, shortest=SHORTEST)[0] for path in paths]
    longest = max(map(len, waves))
    tracks = np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves])
    if runs := rendering.clipped_runs(tracks):
        print(f"note: the input is at full scale in {runs} places; what is clipped stays clipped.", file=sys.stderr)
    return tracks


def _song(module: TrainModule, args: argparse.Namespace, tracks: np.ndarray, rate: int) -> Song:
    import soxr

    heard = tracks
    if rate != module.sample_rate:
        heard = np.ascontiguousarray(soxr.resample(tracks.T, rate, module.sample_rate, quality="VHQ").T)
    reference = None
    if args.reference is not None:
        reference = read_recording(args.reference, module.sample_rate, channels=2, shortest=SHORTEST)
    return Song(tuple(path.name for path in args.input), tracks, rate, heard, reference)


def _write(out: Path, tracks: np.ndarray, preset: Preset, rendered: Rendered) -> list[Path]:
    rate = preset.layout.sample_rate
    mix = (rendered.mix[0] * 10 ** (-preset.turned_down / 20)).numpy()
    out.mkdir(parents=True, exist_ok=True)
    soundfile.write(out / "mix.wav", mix.T, rate, subtype="PCM_24")
    write_atomic(out / "settings.json", preset.to_json().encode())
    if preset.turned_down:
        print(
            f"note: the mix was turned down by {preset.turned_down:.1f} dB so that it does not clip.", file=sys.stderr
        )
    return [
        out / "mix.wav",
        out / "settings.json",
        showing.write_table(out / "settings.txt", preset),
        showing.write_equaliser(out / "equaliser.png", preset),
        showing.write_reduction(out / "reduction.png", rendered),
        showing.write_spectra(out / "spectra.png", {"before": tracks.sum(0, keepdims=True), "after": mix}, rate),
    ]
