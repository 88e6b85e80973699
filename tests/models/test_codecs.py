"""The analytic codecs: exact inverses, energy kept, what is lost is what they say; and the door with its mistakes."""

import math
import subprocess
import sys

import pytest
import torch

from models.codecs import SAMPLE_RATES, check_rate, load_codec, weights_identity
from models.codecs.mdct import Mdct, MdctShape
from models.codecs.meldct import MelDct
from models.codecs.standardisation import Standardisation
from models.features import AUDIOLDM2, log_mel
from pipeline.errors import UserError


def tone(hertz: float, seconds: float, sample_rate: int) -> torch.Tensor:
    at = torch.arange(round(seconds * sample_rate), dtype=torch.float64) / sample_rate
    return (0.3 * torch.sin(2 * math.pi * hertz * at)).float()


def snr(wave: torch.Tensor, rebuilt: torch.Tensor) -> float:
    """dB."""
    return float(10 * torch.log10(wave.square().sum() / (wave - rebuilt).square().sum()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_mdct_with_all_bands_is_exact_and_keeps_energy(dtype, tolerance, frames):
    codec = Mdct(44100, shape=MdctShape(64, 64))
    wave = torch.rand(3, 2, 64 * frames, dtype=dtype, generator=torch.Generator().manual_seed(0)) - 0.5
    latent = codec.encode(wave)
    assert latent.shape == (3, 2, 64, frames)
    torch.testing.assert_close(latent.square().sum(), wave.square().sum(), rtol=1e-5, atol=0)
    assert (codec.decode(latent) - wave).abs().max() < tolerance


def test_mdct_is_an_orthonormal_matrix():
    codec = Mdct(44100, shape=MdctShape(8, 8))
    matrix = codec.encode(torch.eye(40, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(40, dtype=torch.float64), rtol=0, atol=1e-14)


def test_mdct_against_its_definition():
    """A frame away from the ends is the windowed sum of Princen and Bradley."""
    hop, wave = 16, torch.randn(96, dtype=torch.float64)
    frame = Mdct(44100, shape=MdctShape(hop, hop)).encode(wave)[:, 3]
    n, k = torch.arange(2 * hop, dtype=torch.float64), torch.arange(hop, dtype=torch.float64)
    window = torch.sin(math.pi / (2 * hop) * (n + 0.5))
    stretch = wave[3 * hop - hop // 2 : 4 * hop + hop // 2]
    kernel = math.sqrt(2 / hop) * torch.cos(math.pi / hop * (n[None] - hop / 2 + 0.5) * (k[:, None] + 0.5))
    torch.testing.assert_close(frame, kernel @ (window * stretch))


@pytest.mark.parametrize(("rate", "channels", "full"), [(44100, 64, (524288, 1024)), (24000, 128, (384000, 1200))])
def test_mdct_shapes_at_full_size(rate, channels, full):
    codec = load_codec("mdct", sample_rate=rate)
    samples, frames = full
    assert codec.latent_shape(samples) == (channels, frames)
    assert codec.encode(torch.zeros(2, samples)).shape == (2, channels, frames)
    assert codec.encode(torch.zeros(3, 1000)).shape[1:] == codec.latent_shape(1000)
    assert codec.weights_hash is None


@pytest.mark.parametrize("rate", [44100, 24000])
def test_mdct_loses_the_treble_and_nothing_else(rate):
    codec = load_codec("mdct", sample_rate=rate)
    edge = codec.sample_rate / 2 * codec.channels / codec.hop
    kept, lost = tone(0.7 * edge, 1.0, rate), tone(1.4 * edge, 1.0, rate)
    rebuilt = codec.decode(codec.encode(torch.stack([kept, lost])))[:, :rate]
    inner = slice(codec.hop, -codec.hop)  # a tone that begins out of nothing is no tone at its ends
    assert snr(kept[inner], rebuilt[0, inner]) > 60
    assert rebuilt[1, inner].square().mean() < 1e-5 * lost.square().mean()


def test_gradients_pass_through_the_analytic_codecs_both_ways():
    """Orthonormal rows: encoding what was decoded gives the latent, so the gradient of half its square is the latent itself."""
    mdct, meldct = load_codec("mdct", sample_rate=24000), MelDct()
    for latent, there_and_back in (
        (torch.randn(1, 128, 4), lambda x: mdct.encode(mdct.decode(x))),
        (torch.randn(1, 8, 5, 3), lambda x: meldct.encode_mel(meldct.decode_mel(x))),
    ):
        (there_and_back(latent.requires_grad_()).square().sum() / 2).backward()
        torch.testing.assert_close(latent.grad, latent.detach(), rtol=1e-4, atol=1e-5)


def test_meldct_has_the_shapes_of_the_vae():
    codec = load_codec("meldct")
    mel = torch.randn(2, 4, 64, 400)
    latent = codec.encode_mel(mel)
    assert latent.shape == (2, 4, 8, 100, 16) == (2, 4, *codec.latent_shape(64000))
    assert codec.decode_mel(latent).shape == mel.shape
    torch.testing.assert_close(codec.encode_mel(codec.decode_mel(latent)), latent)
    with pytest.raises(ValueError, match="does not divide"):
        codec.encode_mel(torch.zeros(64, 401))


def test_meldct_channels_and_axes():
    """Time before frequency; channel 0 is four times the mean; the fastest movement along frequency is kept, along time it is lost."""
    codec = MelDct()
    smooth = torch.linspace(0, 1, 64)[:, None] + torch.linspace(0, 3, 400)[None]
    latent = codec.encode_mel(smooth)
    torch.testing.assert_close(latent[0, 0, 0], 4 * smooth[:4, :4].mean())
    torch.testing.assert_close(latent[0, 99, 3], 4 * smooth[12:16, 396:].mean())
    assert (codec.decode_mel(latent) - smooth).abs().max() < 2e-3
    stripes = torch.zeros(64, 400)
    stripes[::2] = 1.0
    torch.testing.assert_close(codec.decode_mel(codec.encode_mel(stripes)), stripes)
    beats = torch.zeros(64, 400)
    beats[:, ::2] = 1.0
    assert (codec.decode_mel(codec.encode_mel(beats)) - beats).abs().max() > 0.3


def test_meldct_makes_sound():
    codec, wave = MelDct(), tone(440, 0.96, 16000)
    rebuilt = codec.decode(codec.encode(wave))
    assert rebuilt.shape == wave.shape
    assert (log_mel(rebuilt, AUDIOLDM2) - log_mel(wave, AUDIOLDM2)).abs().mean() < 1.0


def test_the_door_tells_mistakes_in_one_sentence(monkeypatch):
    monkeypatch.delenv("SLURMPHONY_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"no codec 'mdtc'\. Did you mean 'mdct'\? There are: mdct, meldct, audioldm2"):
        load_codec("mdtc")
    with pytest.raises(
        UserError, match="encodec works at 24000 Hz, this is audio of 44100 Hz; codecs for that: mdct, music2latent"
    ):
        load_codec("encodec", sample_rate=44100)
    with pytest.raises(UserError, match="several sample rates; say which: 44100, 24000 Hz"):
        load_codec("mdct")
    with pytest.raises(UserError, match="for that: none"):
        check_rate("mdct", 22050)
    for name in ("encodec", "audioldm2", "music2latent"):
        for ask in (load_codec, weights_identity):
            with pytest.raises(UserError, match=f"fetch_weights.py {name} --out DIR, then set SLURMPHONY_WEIGHTS=DIR"):
                ask(name)
    assert weights_identity("mdct") is None


def test_names_are_known_without_torch():
    program = "import sys, models.codecs as c; c.weights_identity('mdct'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    assert set(SAMPLE_RATES) == {"mdct", "meldct", "audioldm2", "encodec", "music2latent"}


def test_standardisation():
    latent = (
        torch.randn(500, 2, 3, 7) * torch.tensor([1.0, 5.0])[:, None, None] + torch.tensor([3.0, 0.0, -9.0])[:, None]
    )
    latent[:, 1, 2] = -4.0  # a channel that never moves
    facts = {
        "shape": [2, 3, 7],
        "mean": latent.mean((0, 3)).tolist(),
        "std": latent.std((0, 3), correction=0).tolist(),
    }
    both = Standardisation.from_info({"latent": {"fields": {"stems_latent": facts}}}, "stems_latent")
    standard = both.apply(latent.half())
    assert standard.dtype == torch.float32
    torch.testing.assert_close(standard.mean((0, 3)), torch.zeros(2, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(standard.std((0, 3))[0], torch.ones(3), atol=1e-2, rtol=0)
    assert standard[:, 1, 2].abs().max() < 1e-2
    torch.testing.assert_close(both.invert(both.apply(latent)), latent)
    pooled = both.pooled(1)
    assert pooled.mean.shape == (3, 1)
    torch.testing.assert_close(
        pooled.std[:, 0], latent.transpose(1, 2).std((0, 2, 3), correction=0), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(KeyError):
        Standardisation.from_info({"latent": {"fields": {}}}, "stems_latent")
