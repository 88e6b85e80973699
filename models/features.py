"""What models see of a waveform: one definition for preparation, training, evaluation and generation.

A mel here is the magnitude (not power) of a Hann-windowed STFT through torchaudio's Slaney filter bank, then the
natural logarithm above a floor: ``log(max(mel, 1e-5))``, the convention of HiFi-GAN and AudioLDM2. Frame k is
centred on sample ``(k + 1/2) * hop``, so n samples give exactly ``n // hop`` frames.

A constant-Q transform here is librosa's (``librosa.cqt`` with ``scale=True`` and zeros beyond the ends), in torch, differentiable, on
any device: frame k is centred on sample ``k * hop``, so n samples give ``1 + n // hop`` frames.

Shape legend: B bands, L frames, n samples; leading dimensions are free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from models.blocks import fourier
from models.blocks.precision import full_precision, kept_for_all

PHASE_SEED = 20240810  # Griffin-Lim starts from fixed random phases: the same mel gives the same waveform
SILENT_POWER = 1e-16  # of a bin that no band covers, or where all parts are silent: they share it
OCTAVES_LOWEST, OCTAVES_HIGHEST = 80.0, 16000.0  # Hz; the middles of the outermost of ``octave_bands``
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


@dataclass(frozen=True)
class CqtSpec:
    """How a CQT is computed. ``f_min`` in Hz (of bin 0), ``hop`` in samples; ``floor`` in units of its magnitude, in which a full-scale
    sine has half the square root of its bin's wavelet length."""

    sample_rate: int
    bins: int
    bins_per_octave: int
    f_min: float
    hop: int
    floor: float = 1e-4

    @property
    def frequencies(self) -> list[float]:
        """Hz of each bin."""
        return [self.f_min * 2 ** (k / self.bins_per_octave) for k in range(self.bins)]

    @property
    def lengths(self) -> list[float]:
        """Samples of each bin's wavelet: neighbouring bins' bands touch (Schoerkhuber and Klapuri 2010)."""
        step = 2 ** (2 / self.bins_per_octave)
        return [(step + 1) / (step - 1) * self.sample_rate / hertz for hertz in self.frequencies]


C1 = 32.70319566257483  # Hz
CQT = CqtSpec(sample_rate=22050, bins=84, bins_per_octave=12, f_min=C1, hop=64)
CHROMA_BAND = (110.0, 3520.0)  # Hz
CHROMA_FLOOR = 1e-8  # of power: the root has a gradient
NO_CQT = "a CQT needs a waveform of finite numbers, with one sample at least"
CQT_CHUNK = 8192  # frames computed at a time; bounds the memory of a long recording
CQT_BAND = 32  # a wavelet's spectrum is kept up to this many bins of its own length from its centre: -97 dB


@full_precision
def log_mel(wave: torch.Tensor, spec: MelSpec, *, context: bool = False) -> torch.Tensor:
    """(..., n) waveform, full scale 1 -> (..., B, L) log-mel of the waveform's dtype.

    L = n // hop, the ends mirrored. With ``context`` the ends are real instead: the caller passes ``spec.margin``
    samples more on either side, and L = (n - 2 * margin) // hop. Raises ValueError where n is too short to mirror.
    """
    return log_compress(mel(wave, spec, context=context), spec)


def octave_bands(count: int, window: int, sample_rate: int) -> torch.Tensor:
    """(F, B = count): triangles over the bins of an STFT whose middles stand in equal ratios from OCTAVES_LOWEST to OCTAVES_HIGHEST, each
    of sum 1, none narrower than a bin."""
    hertz = torch.fft.rfftfreq(window, 1 / sample_rate).clamp(min=1)[:, None]
    middles = OCTAVES_LOWEST * (OCTAVES_HIGHEST / OCTAVES_LOWEST) ** torch.linspace(0, 1, count)
    ratio = math.log2(OCTAVES_HIGHEST / OCTAVES_LOWEST) / max(count - 1, 1)
    reach = (1 + sample_rate / window / middles).log2().clamp(min=ratio)
    triangles = (1 - (hertz / middles).log2().abs() / reach).clamp(min=0)
    return triangles / triangles.sum(0).clamp(min=1e-6)


def log_compress(magnitudes: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """Mel magnitudes to log-mel; values below ``spec.floor`` become ``log(spec.floor)``."""
    return magnitudes.clamp(min=spec.floor).log()


def loudest(spec: MelSpec) -> float:
    """The log-mel that a full-scale sine reaches where bands are narrowest, within 0.3: no recording is louder in any band."""
    return math.log(spec.window / 2 * float(_filters(spec, torch.float32, torch.device("cpu")).max()))


@full_precision
def mel(wave: torch.Tensor, spec: MelSpec, *, context: bool = False) -> torch.Tensor:
    """(..., n) -> (..., B, L) mel magnitudes; framing as in ``log_mel``. Scales with the waveform: mel(g x) = g mel(x)."""
    if not context:
        wave = _mirrored(wave, spec)
    magnitudes = _spectrum(wave, spec).abs()
    return (magnitudes @ _filters(spec, wave.dtype, wave.device)).transpose(-1, -2)


@full_precision
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
        phase = torch.sgn(rebuilt - MOMENTUM / (1 + MOMENTUM) * previous)
        previous = rebuilt
    wave = _overlap_add(magnitudes * phase, spec)
    return wave[..., spec.margin : spec.margin + log_mels.shape[-1] * spec.hop]


@full_precision
def parted(wave: torch.Tensor, log_mels: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """A mixture (..., n) and what its S parts sound like, log-mels (..., S, B, L), n = L * hop -> the parts (..., S, n).

    Wiener's masks on the mixture's spectrum: a part's share of the power. Phases are the mixture's; the parts add up to it. Raises
    ValueError where n is too short, as ``log_mel`` does, or fits no L.
    """
    if wave.shape[-1] != log_mels.shape[-1] * spec.hop:
        raise ValueError(f"{wave.shape[-1]} samples are not {log_mels.shape[-1]} frames of {spec.hop}")
    spectrum = _spectrum(_mirrored(wave, spec), spec).unsqueeze(-3)
    power = (2 * log_mels).exp().transpose(-1, -2) @ _filters(spec, log_mels.dtype, log_mels.device).T + SILENT_POWER
    parts = _overlap_add(spectrum * (power / power.sum(-3, keepdim=True)), spec)
    return parts[..., spec.margin : spec.margin + wave.shape[-1]]


def log_cqt(wave: torch.Tensor, spec: CqtSpec = CQT) -> torch.Tensor:
    """(..., n) -> (..., 2, B, L): natural logarithm of the magnitude above ``spec.floor``, and the phase in radians (0 at the floor).

    What is prepared and what is listened to. Raises ValueError for an empty waveform and for numbers that are none; there is no other
    failure, and never a substitute.
    """
    if not bool(torch.isfinite(wave).all()):
        raise ValueError(NO_CQT)
    transform = cqt(wave, spec)
    magnitude = transform.abs()
    phase = torch.where(magnitude > spec.floor, transform.angle(), torch.zeros_like(magnitude))
    return torch.stack([magnitude.clamp(min=spec.floor).log(), phase], dim=-3)


@full_precision
def cqt(wave: torch.Tensor, spec: CqtSpec = CQT) -> torch.Tensor:
    """(..., n) waveform at ``spec.sample_rate`` -> complex (..., B, L), L = 1 + n // hop.

    Every bin is one product of spectra, folded to the frame rate before it is transformed back: exact, without decimation. Raises
    ValueError for an empty waveform. Of a waveform with NaN or infinity in it nothing is a number: to ask would make the host wait for the
    device (``log_cqt`` asks).
    """
    if wave.shape[-1] == 0:
        raise ValueError(NO_CQT)
    frames = 1 + wave.shape[-1] // spec.hop
    reach = math.ceil((spec.lengths[0] / 2 + 1) / spec.hop) * spec.hop
    flat = torch.nn.functional.pad(wave.reshape(-1, wave.shape[-1]), (reach, reach + spec.hop))
    chunks = []
    for first in range(0, frames, CQT_CHUNK):
        count = min(CQT_CHUNK, frames - first)
        piece = flat[:, first * spec.hop : (first + count - 1) * spec.hop + 2 * reach + 1]
        chunks.append(_cqt_piece(piece, spec)[..., reach // spec.hop :][..., :count])
    return torch.cat(chunks, dim=-1).reshape(*wave.shape[:-1], spec.bins, frames)


def _cqt_piece(wave: torch.Tensor, spec: CqtSpec) -> torch.Tensor:
    """(b, n) -> complex (b, B, K), frame k centred on sample k * hop, those near the ends reaching around them."""
    folded = 1 << max(0, math.ceil(wave.shape[-1] / spec.hop) - 1).bit_length()
    spectrum = fourier.rfft(wave, folded * spec.hop)
    bins = []
    for low, wavelet in _wavelets(spec, folded, spectrum.dtype, wave.device):
        product = spectrum[:, low : low + len(wavelet)] * wavelet
        where = (low + torch.arange(len(wavelet), device=wave.device)) % folded
        bins.append(product.new_zeros(len(wave), folded).index_add(1, where, product))
    return torch.fft.ifft(torch.stack(bins, dim=1)) / spec.hop


@kept_for_all
def _wavelets(spec: CqtSpec, folded: int, dtype: torch.dtype, device: torch.device) -> list[tuple[int, torch.Tensor]]:
    """For each bin the conjugate spectrum of its wavelet over ``folded * hop`` samples, around its centre: first index, values.

    The wavelet is a Hann window of unit sum times the bin's oscillation, by the square root of its length (librosa's scale).
    """
    size = folded * spec.hop
    found = []
    for hertz, length in zip(spec.frequencies, spec.lengths, strict=True):
        at = torch.arange(math.floor(-length / 2), math.floor(length / 2), dtype=torch.float64)
        window = torch.hann_window(len(at), dtype=torch.float64)
        wave = torch.polar(math.sqrt(length) * window / window.sum(), 2 * torch.pi * hertz / spec.sample_rate * at)
        around = torch.zeros(size, dtype=torch.complex128).index_add(0, at.long() % size, wave)
        centre, width = hertz / spec.sample_rate * size, CQT_BAND / length * size
        low, high = max(0, math.floor(centre - width)), min(size // 2, math.ceil(centre + width))
        found.append((low, torch.fft.fft(around)[low:high].conj().resolve_conj().to(dtype=dtype, device=device)))
    return found


def onset_strength(wave: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """(..., n) -> (..., L - 1): how much the log-mel rises from a frame to the next, a mean over its bands (spectral flux).

    Raises ValueError where n is too short, as ``log_mel`` does.
    """
    return log_mel(wave, spec).diff(dim=-1).clamp_min(0).mean(-2)


@full_precision
def stft_chroma(wave: torch.Tensor, sample_rate: int, window: int) -> torch.Tensor:
    """(..., n) -> (..., 12, L) magnitudes of the pitch classes from C on, L = 1 + n // hop, the hop a quarter of ``window`` (samples).

    An STFT folded over five octaves (110 to 3520 Hz): coarse in the bass, but cheap, differentiable, and enough to learn by; for figures
    fold a ``cqt``. Each bin counts for the two semitones that it lies between.
    """
    taper = torch.hann_window(window, dtype=wave.dtype, device=wave.device)
    frames = fourier.windowed(fourier.beyond(wave, window // 2, "constant"), taper, window // 4)
    magnitudes = fourier.powers(frames).clamp_min(CHROMA_FLOOR).sqrt()
    return (magnitudes @ _pitch_classes(sample_rate, window, wave.dtype, wave.device).T).transpose(-1, -2)


@kept_for_all
def _pitch_classes(sample_rate: int, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(12, window // 2 + 1): each bin's share in each pitch class."""
    hertz = torch.arange(window // 2 + 1, dtype=torch.float64) * (sample_rate / window)
    inside = (hertz >= CHROMA_BAND[0]) & (hertz <= CHROMA_BAND[1])
    semitone = 12 * (hertz.clamp_min(1.0) / C1).log2()
    below, part = semitone.floor(), semitone.frac()
    shares = torch.zeros(12, len(hertz), dtype=torch.float64)
    for classes, share in ((below, 1 - part), (below + 1, part)):
        shares.scatter_add_(0, (classes.long() % 12)[None], torch.where(inside, share, 0.0)[None])
    return shares.to(dtype=dtype, device=device)


def _mirrored(wave: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """(..., n) -> (..., n + 2 margin), the ends mirrored. Raises ValueError where n is too short for that."""
    if wave.shape[-1] <= spec.margin:
        raise ValueError(
            f"{wave.shape[-1]} samples are too short for a window of {spec.window} and a hop of {spec.hop}"
        )
    return fourier.beyond(wave, spec.margin)


def _spectrum(wave: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """(..., n) -> complex (..., L, window // 2 + 1), no padding."""
    return fourier.rfft(fourier.windowed(wave, _hann(spec, wave.dtype, wave.device), spec.hop), spec.window)


def _overlap_add(spectrum: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """Least-squares inverse of ``_spectrum`` (Griffin and Lim 1984, eq. 6): (..., L, F) -> (..., (L - 1) * hop + window)."""
    window = _hann(spec, torch.float32, spectrum.device)
    frames = torch.fft.irfft(spectrum, n=spec.window) * window
    lead, count = frames.shape[:-2], frames.shape[-2]
    length = (count - 1) * spec.hop + spec.window
    total = fourier.overlapped(frames.reshape(-1, count, spec.window), spec.hop)
    weight = fourier.overlapped((window**2).expand(1, count, -1), spec.hop)
    return (total / weight.clamp(min=1e-3))[:, :length].reshape(*lead, length)


def _unmel(magnitudes: torch.Tensor, spec: MelSpec, steps: int = 100) -> torch.Tensor:
    """Mel magnitudes (..., B, L) -> STFT magnitudes (..., F, L) >= 0, by multiplicative updates (Lee and Seung 2001)."""
    filters = _filters(spec, magnitudes.dtype, magnitudes.device)
    target = filters @ magnitudes
    estimate = target / filters.sum(dim=1, keepdim=True).clamp(min=1e-8).square()
    for _ in range(steps):  # the bank has far fewer bands than bins: never its product with itself
        estimate = estimate * target / (filters @ (filters.T @ estimate)).clamp(min=1e-12)
    return estimate


@kept_for_all
def _hann(spec: MelSpec, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.hann_window(spec.window, dtype=dtype, device=device)


@kept_for_all
def _filters(spec: MelSpec, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Slaney filter bank of unit area, (window // 2 + 1, B)."""
    from torchaudio.functional import melscale_fbanks  # late: only who computes a mel needs torchaudio

    bins = spec.window // 2 + 1
    bank = melscale_fbanks(
        bins, spec.f_min, spec.f_max, spec.bands, spec.sample_rate, norm="slaney", mel_scale="slaney"
    )
    return bank.to(dtype=dtype, device=device)
