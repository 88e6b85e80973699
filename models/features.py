"""What models see of a waveform: one definition for preparation, training, evaluation and generation.

A mel here is the magnitude (not power) of a Hann-windowed STFT through torchaudio's Slaney filter bank, then the
natural logarithm above a floor: ``log(max(mel, 1e-5))``, the convention of HiFi-GAN and AudioLDM2. Frame k is
centred on sample ``(k + 1/2) * hop``, so n samples give exactly ``n // hop`` frames.

Shape legend: B bands, L frames, n samples; leading dimensions are free.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

PHASE_SEED = 20240810  # Griffin-Lim starts from fixed random phases: the same mel gives the same waveform
MOMENTUM = 0.99  # of fast Griffin-Lim (Perraudin et al. 2013)


@dataclass(frozen=True)
class MelSpec:
    """How a mel is computed. ``sample_rate``, ``f_min``, ``f_max`` in Hz; ``window``, ``hop`` in samples; ``floor`` in
    units of mel magnitude (full-scale waveform = 1, window not normalised)."""

    sample_rate: int
    bands: int
    window: int
    hop: int
    f_min: float = 0.0
    f_max: float = 8000.0
    floor: float = 1e-5

    @property
    def margin(self) -> int:
        """Samples that the outermost windows reach beyond the framed stretch, on either side."""
        return (self.window - self.hop) // 2


SIMPLE = MelSpec(sample_rate=16000, bands=128, window=1024, hop=512)
AUDIOLDM2 = MelSpec(sample_rate=16000, bands=64, window=1024, hop=160)


def log_mel(wave: torch.Tensor, spec: MelSpec, *, context: bool = False) -> torch.Tensor:
    """(..., n) waveform, full scale 1 -> (..., B, L) log-mel of the waveform's dtype.

    L = n // hop, the ends mirrored. With ``context`` the ends are real instead: the caller passes ``spec.margin``
    samples more on either side, and L = (n - 2 * margin) // hop. Raises ValueError where n is too short to mirror.
    """
    return log_compress(mel(wave, spec, context=context), spec)


def log_compress(magnitudes: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """Mel magnitudes to log-mel; values below ``spec.floor`` become ``log(spec.floor)``."""
    return magnitudes.clamp(min=spec.floor).log()


def mel(wave: torch.Tensor, spec: MelSpec, *, context: bool = False) -> torch.Tensor:
    """(..., n) -> (..., B, L) mel magnitudes; framing as in ``log_mel``. Scales with the waveform: mel(g x) = g mel(x)."""
    if not context:
        if wave.shape[-1] <= spec.margin:
            raise ValueError(
                f"{wave.shape[-1]} samples are too short for a window of {spec.window} and a hop of {spec.hop}"
            )
        flat = wave.reshape(-1, wave.shape[-1])
        wave = torch.nn.functional.pad(flat, (spec.margin, spec.margin), mode="reflect").reshape(*wave.shape[:-1], -1)
    magnitudes = _spectrum(wave, spec).abs()
    return (magnitudes @ _filters(spec, wave.dtype, wave.device)).transpose(-1, -2)


def waveform(log_mels: torch.Tensor, spec: MelSpec, iterations: int = 64) -> torch.Tensor:
    """(..., B, L) log-mel -> (..., L * hop) waveform by fast Griffin-Lim, its phases started from a fixed seed.

    The spectrum is the least-squares preimage of the mel under non-negativity, so bands that the filter bank mixes stay mixed:
    expect the pitch and the timbre of the original, not its waveform.
    """
    magnitudes = _unmel(log_mels.exp(), spec).transpose(-1, -2)
    generator = torch.Generator().manual_seed(PHASE_SEED)
    angle = 2 * torch.pi * torch.rand(magnitudes.shape[-2:], generator=generator)
    phase = torch.polar(torch.ones_like(angle), angle).to(magnitudes.device)
    previous = torch.zeros_like(phase)
    for _ in range(iterations):
        rebuilt = _spectrum(_overlap_add(magnitudes * phase, spec), spec)
        phase = rebuilt - MOMENTUM / (1 + MOMENTUM) * previous
        phase = phase / phase.abs().clamp(min=1e-16)
        previous = rebuilt
    wave = _overlap_add(magnitudes * phase, spec)
    return wave[..., spec.margin : spec.margin + log_mels.shape[-1] * spec.hop]


def _spectrum(wave: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """(..., n) -> complex (..., L, window // 2 + 1), no padding."""
    frames = wave.unfold(-1, spec.window, spec.hop)
    return torch.fft.rfft(frames * _hann(spec, wave.dtype, wave.device))


def _overlap_add(spectrum: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """Least-squares inverse of ``_spectrum`` (Griffin and Lim 1984, eq. 6): (..., L, F) -> (..., (L - 1) * hop + window)."""
    window = _hann(spec, torch.float32, spectrum.device)
    frames = torch.fft.irfft(spectrum, n=spec.window) * window
    lead, count = frames.shape[:-2], frames.shape[-2]
    length = (count - 1) * spec.hop + spec.window
    where = torch.arange(count, device=frames.device)[:, None] * spec.hop + torch.arange(
        spec.window, device=frames.device
    )
    flat = frames.reshape(-1, count * spec.window)
    total = flat.new_zeros(flat.shape[0], length).index_add_(1, where.flatten(), flat)
    weight = flat.new_zeros(length).index_add_(0, where.flatten(), (window**2).repeat(count))
    return (total / weight.clamp(min=1e-3)).reshape(*lead, length)


def _unmel(magnitudes: torch.Tensor, spec: MelSpec, steps: int = 100) -> torch.Tensor:
    """Mel magnitudes (..., B, L) -> STFT magnitudes (..., F, L) >= 0, by multiplicative updates (Lee and Seung 2001)."""
    filters = _filters(spec, magnitudes.dtype, magnitudes.device)
    target = filters @ magnitudes
    gram = filters @ filters.T
    estimate = target / filters.sum(dim=1, keepdim=True).clamp(min=1e-8).square()
    for _ in range(steps):
        estimate = estimate * target / (gram @ estimate).clamp(min=1e-12)
    return estimate


@functools.cache
def _hann(spec: MelSpec, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.hann_window(spec.window, dtype=dtype, device=device)


@functools.cache
def _filters(spec: MelSpec, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Slaney filter bank of unit area, (window // 2 + 1, B)."""
    from torchaudio.functional import melscale_fbanks  # late: only who computes a mel needs torchaudio

    bins = spec.window // 2 + 1
    bank = melscale_fbanks(
        bins, spec.f_min, spec.f_max, spec.bands, spec.sample_rate, norm="slaney", mel_scale="slaney"
    )
    return bank.to(dtype=dtype, device=device)
