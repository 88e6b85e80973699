"""Take a mixture apart, change what its sources play or who plays it, and hear and see what becomes of it.

The mixture is a sample of the held-out split (--sample 0) or your own recording with a recording of each instrument by
itself (--mix duo.wav --query violin.wav flute.wav); sources are numbered from 0 in the order of the queries.

Simple case (notes of 320 ms): exchange two pitches or timbres. Written are WAVs of the mixture before and after and of each
source after, and swap.png. What lasts 320 ms is also written held for two seconds (its frames forwards and backwards).

LDM case (music of any length): exchange melodies or instruments, give a source another instrument, move one of its notes or
all of them, render the whole mixture or one source by itself. Written are WAVs before and after, the spectrograms, and the
transcription as a piano roll.

Where the codec has no vocoder, all audio but before.wav of your own recording comes out of spectrograms by Griffin-Lim, and
sounds like it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models.dismix.train_module import TrainModule
from pipeline.errors import UserError

LDM_ONLY = ("replace_instrument", "note", "transpose", "only", "sampler", "steps", "draw")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sample", type=int, metavar="K", help="sample K of the held-out split (the default: 0)")
    parser.add_argument(
        "--mix",
        type=Path,
        metavar="FILE",
        help="your own mixture, any sample rate and channels, as long as one window or longer",
    )
    parser.add_argument(
        "--query", type=Path, nargs="+", metavar="FILE", help="one recording per instrument in the mixture"
    )
    for what in ("timbre", "pitch"):
        parser.add_argument(
            f"--swap-{what}", type=int, nargs=2, action="append", default=[], metavar=("I", "J"),
            help=f"sources I and J exchange their {what}; may be repeated",
        )  # fmt: skip
    ldm = parser.add_argument_group("in the LDM case")
    ldm.add_argument(
        "--replace-instrument",
        nargs=2,
        action="append",
        metavar=("I", "FILE"),
        help="source I is played by what FILE records",
    )
    ldm.add_argument(
        "--note", type=int, nargs=3, action="append", metavar=("I", "FROM", "TO"),
        help="where source I plays MIDI note FROM it plays TO, and the other way round",
    )  # fmt: skip
    ldm.add_argument(
        "--transpose",
        type=int,
        nargs=2,
        action="append",
        metavar=("I", "SEMITONES"),
        help="source I plays higher or lower",
    )
    ldm.add_argument("--only", type=int, metavar="I", help="render source I by itself, without the others around it")
    ldm.add_argument("--sampler", choices=("ddim", "dpm"), help="default: what the config says")
    ldm.add_argument(
        "--steps", type=int, metavar="S", help="sampling steps, 1 to the schedule's; default: the config's"
    )
    ldm.add_argument("--draw", type=int, metavar="SEED", help="another draw of the noise it starts from (default: 0)")


def generate(module: TrainModule, args: argparse.Namespace, data_folder: Path, out: Path) -> list[Path]:
    """Write audio and pictures into ``out``; returns the files. UserError for inputs that cannot be used."""
    if module.model_config.case == "ldm":
        from models.dismix.ldm import generate as ldm
        from models.dismix.ldm.training import LdmModule

        assert isinstance(module, LdmModule)
        return ldm.generate(module, args, data_folder, out)
    for name in LDM_ONLY:
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is for runs of the LDM case; this one takes --swap-timbre and --swap-pitch."
            )
    from models.dismix.simple import generate as simple
    from models.dismix.simple.training import SimpleModule

    assert isinstance(module, SimpleModule)
    return simple.generate(module, args, data_folder, out)
