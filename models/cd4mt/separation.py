"""Stems out of a mixture: sampling that is led to stems whose mels add up to the mixture's.

It takes ``meldct``, whose mels are linear in the latents: what an estimate's mixture would look like is then a formula, and has a
derivative. At every level of noise the estimate D(x) moves along Cov(x_0 | x) A^T r, where r is what its mixture is off and A the
derivative of the mixture by the latents. The covariance is sigma^2 dD/dx (Tweedie's formula, second order), so this is the gradient of
|r|^2 / 2 through the denoiser, the direction of DPS (Chung et al. 2209.14687, Algorithm 1); how far, is not a constant but what takes most
of r away to first order, times STRENGTH. What several draws agree on parts the mixture's spectrum by masks (``features.parted``), so that
the stems add up to it.

Shapes: B samples, S stems, C latent channels, L frames of latents, M bands, T mel frames, n audio samples.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from models.cd4mt import data as facts
from models.cd4mt import sampling
from models.cd4mt.codec_cost import NEPER
from models.cd4mt.coherence import audible
from models.cd4mt.schedules import karras_sigmas
from models.cd4mt.statistics import Figures
from models.cd4mt.train_module import TrainModule
from models.codecs import codec_of
from models.codecs.meldct import MelDct
from models.features import log_mel, parted
from models.inputs import read_recording
from models.metrics import mean, si_sdr
from pipeline.errors import UserError
from pipeline.rng import KeyedRandom

STEPS = 18
STRENGTH = 1.0  # of the step that explains most
DRAWS = 4  # whose powers are averaged: masks of one draw are too sure of themselves
BATCH = 16
LEAST = 1e-9


def analytic_codec(module: TrainModule) -> MelDct:
    """UserError where the run's codec is another one."""
    codec = codec_of(module.data, module.latent_mean.device.type)
    if not isinstance(codec, MelDct):
        raise UserError(
            f"{module.data['latent']['codec']} says of a mixture's latent nothing that its stems' latents add up to, so --separate "
            "needs a run on data.codec=meldct: python jobs/launch.py cd4mt_demo."
        )
    return codec


def added(mels: Tensor) -> Tensor:
    """(B, S, M, T) log-mels of stems -> (B, M, T) of their mixture, where phases do not agree: powers add up."""
    return (2 * mels).logsumexp(1) / 2


def mels_of(module: TrainModule, latents: Tensor) -> Tensor:
    """(B, S, C, L) -> (B, S, M, T) log-mels."""
    return analytic_codec(module).decode_mel(facts.as_stored(module.scale.invert(latents), module.data))


def separated(module: TrainModule, mixture: Tensor, steps: int = STEPS, seed: int = 0) -> Tensor:
    """(B, M, T) log-mels of mixtures -> stems (B, S, C, L) that would sound like them; a sample of what they can be.

    Diffusion goes down the levels by Euler's method, a consistency model with fresh noise.
    """
    config, random = module.model_config, KeyedRandom(seed)
    lowest = sampling.NEGLIGIBLE * config.sigma_data
    levels = karras_sigmas(steps, lowest, config.sigma_max, config.rho).tolist()
    stems, channels = module.latent_mean.shape[:2]
    shape, numbers = (stems, channels, module.frames), torch.arange(len(mixture))

    def noise(number: int) -> Tensor:
        return random.normal(f"cd4mt/separation/{number}", numbers, shape, mixture.device)

    x = levels[0] * noise(0)
    for number, (now, after) in enumerate(zip(levels, [*levels[1:], 0.0], strict=True), start=1):
        found = led(module, x, now, mixture)
        way = (x - found) / now if config.objective == "edm" else noise(number)
        x = found + after * way
    return x


def led(module: TrainModule, x: Tensor, sigma: float, mixture: Tensor) -> Tensor:
    """D(x) (B, S, C, L), moved towards ``mixture`` (B, M, T)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        found = module.denoiser(x, x.new_full((len(x),), sigma))
        residual = mixture - added(mels_of(module, found))
        error = residual.square().sum() / 2
        (towards,) = torch.autograd.grad(-error, x)
    found, residual = found.detach(), residual.detach()
    _, effect = torch.func.jvp(  # type: ignore[misc]  # two without auxiliary output
        lambda latents: added(mels_of(module, latents)), (found,), (towards,)
    )
    along = (effect * residual).flatten(1).sum(1) / effect.square().flatten(1).sum(1).clamp_min(LEAST)
    return found + STRENGTH * along.clamp_min(0).reshape(-1, 1, 1, 1) * towards


def averaged(module: TrainModule, mixture: Tensor, steps: int = STEPS, seed: int = 0) -> Tensor:
    """(B, M, T) log-mels of mixtures -> (B, S, M, T) of their stems: the mean power of DRAWS draws."""
    found = []
    for part in mixture.split(BATCH):
        draws = (separated(module, part, steps, DRAWS * seed + i) for i in range(DRAWS))
        found.append(torch.stack([2 * mels_of(module, draw) for draw in draws]).logsumexp(0) - math.log(DRAWS))
    return torch.cat(found) / 2


def separate(module: TrainModule, wave: Tensor, steps: int = STEPS, seed: int = 0) -> Tensor:
    """A mixture (n) of any length, full scale 1 -> its stems (S, n), which add up to it. Every window by itself."""
    codec, length = analytic_codec(module), wave.shape[-1]
    window = module.frames * codec.hop
    whole = torch.nn.functional.pad(wave, (0, -length % window))
    mels = averaged(module, log_mel(whole.unflatten(-1, (-1, window)), codec.mel), steps, seed)
    return parted(whole, mels.permute(1, 2, 0, 3).flatten(2), codec.mel)[:, :length]


def mixture_of(module: TrainModule, args: argparse.Namespace) -> Tensor:
    """The recording (n) that ``--separate`` names. UserError for what cannot be separated, or is asked for beside it."""
    if args.given or args.make or args.sample is not None or args.seconds is not None:
        raise UserError(
            "--separate takes all stems out of one recording; leave out --given, --sample, --make and --seconds."
        )
    codec = analytic_codec(module)
    wave = read_recording(Path(args.separate), codec.sample_rate)[0]
    return torch.from_numpy(wave).to(module.latent_mean.device)


def separation(module: TrainModule, waves: Tensor) -> Figures:
    """How well the sums of ``waves`` (B, S, n) are taken apart; nothing where a run's codec is no ``meldct``.

    NAME_si_sdr_above_mixture_db, over stems that sound: how far SI-SDR is above the mixture's own. NAME_log_mel_error_db: how far the
    stems' log-mels are off. Beside ``separated`` stand masks of draws that saw no mixture (``unguided``), those of the stems' own mels
    (``oracle``), and the same share of the power for every stem (``equal``), whose masks leave the mixture.
    """
    codec = codec_of(module.data, module.latent_mean.device.type)
    if not isinstance(codec, MelDct) or not len(waves):
        return {}
    waves = waves[..., : module.frames * codec.hop].to(module.latent_mean.device)
    mixture, true = waves.sum(1), log_mel(waves, codec.mel)
    seen, heard = log_mel(mixture, codec.mel), audible(waves)
    tries = {
        "separated": averaged(module, seen),
        "unguided": mels_of(module, module.draw(torch.arange(len(waves)), module.frames)),
        "oracle": true,
        "equal": (seen - math.log(len(module.stems)) / 2)[:, None].expand_as(true),
    }
    before = si_sdr(mixture[:, None], waves)
    figures: Figures = {"mixture_si_sdr_db": mean(before[heard])}
    for name, mels in tries.items():
        above = si_sdr(parted(mixture, mels, codec.mel), waves) - before
        if name != "equal":
            figures |= {f"{name}_si_sdr_above_mixture_db": mean(above[heard])}
            figures |= {
                f"{name}_si_sdr_above_mixture_db_{stem}": mean(above[:, i][heard[:, i]])
                for i, stem in enumerate(module.stems) if heard[:, i].sum() > 1
            }  # fmt: skip
        if name != "oracle":
            figures[f"{name}_log_mel_error_db"] = mean(NEPER * (mels - true).abs().mean((-1, -2)))
    return figures
