"""The LDM case on a tiny prepared dataset: figures, pictures, audio, and every way to ask for something else."""

import numpy as np
import pytest
import soundfile
import torch

from models.codecs.meldct import MelDct
from models.dismix.evaluate import evaluate
from models.dismix.generate import generate
from models.dismix.judges import Recipe
from models.dismix.ldm import generate as generation
from models.dismix.ldm.judges import trained_judges
from models.dismix.ldm.rendering import encode, render, to_mel
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from tests.models.helpers import build, info, load
from tests.models.test_dismix_audio import arguments, tone
from tests.models.test_dismix_ldm import SMALL
from tests.pipeline.shard_factory import write_prepared

QUICK = Recipe(clips=64, width=8, latent=8, steps=3, batch=8)
STEPS = ("--steps", 2)


def sample(number):
    random = np.random.default_rng(number)
    mels = random.normal(-5.5, 2.4, (9, 64, 400)).astype(np.float32)
    latents = MelDct().encode_mel(torch.from_numpy(mels)).half().numpy()
    pitch = random.integers(40, 80, (4, 400))
    pitch[:, :100] = 128
    return {
        "mixture": mels[0], "queries": mels[5:, None], "mixture_latent": latents[0], "sources_latent": latents[1:5],
        "pitch": pitch, "instrument": random.permutation(4), "meta": {"track": f"track{number}"},
    }  # fmt: skip


def write_clips(folder):
    return write_prepared(folder, {"train": [2], "valid": [2], "test": [1, 2]}, sample, info("dismix_ldm_demo", *SMALL))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def module():
    return build(load("dismix_ldm_demo", *SMALL, "model.ldm.diffusion.sampling_steps=2")).eval()


@pytest.fixture(autouse=True)
def few_griffin_lim_iterations(monkeypatch):
    from models.features import waveform

    monkeypatch.setattr("models.codecs.meldct.waveform", lambda mel, spec: waveform(mel, spec, iterations=1))


def test_figures_of_both_renderings(module, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "models.dismix.ldm.evaluate.trained_judges", lambda *given: trained_judges(*given, recipe=QUICK)
    )
    figures = evaluate(module, data, tmp_path)
    shares = [f"{r}_{what}" for r in ("set", "single") for what in ("pitch", "instrument")]
    for name in [
        *shares,
        "transcription",
        "judge_pitch_on_clean",
        "judge_instrument_on_clean",
        "source_error_db",
        "mixture_error_db",
    ]:
        figure = figures.pop(name)
        assert figure["low"] <= figure["value"] <= figure["high"] and figure["count"] >= 6, name
    assert {"set_judge_frechet", "single_judge_frechet"} <= figures.keys()
    assert all("judge_frechet" in name and value >= 0 for name, value in figures.items())
    assert len(list(tmp_path.glob("judges_*.safetensors"))) == 1


def test_what_is_moved_is_what_is_asked_for(module):
    logits = torch.randn(2, 3, 16, 65)

    def asked(*words):
        return generation._melodies(generation._wish(module, arguments(*words), 3), logits)

    assert torch.equal(asked(), logits)
    assert torch.equal(asked("--swap-pitch", 0, 2), logits[:, [2, 1, 0]])
    up = asked("--transpose", 1, 12)
    assert torch.equal(up[:, 1, :, 12:64], logits[:, 1, :, :52]) and (up[:, 1, :, :12] < -9).all()
    assert torch.equal(up[..., 64], logits[..., 64]) and torch.equal(up[:, [0, 2]], logits[:, [0, 2]])
    down = asked("--transpose", 1, -5)
    assert torch.equal(down[:, 1, :, :59], logits[:, 1, :, 5:64])
    note = asked("--note", 2, 60, 62)  # class 0 is MIDI 24
    assert torch.equal(note[:, 2, :, 38], logits[:, 2, :, 36]) and torch.equal(note[:, 2, :, 36], logits[:, 2, :, 38])


def test_a_sample_is_rendered_whole_with_pictures_and_audio(module, data, tmp_path):
    words = ("--sample", 2, "--swap-timbre", 0, 1, "--transpose", 2, 3, "--sampler", "ddim", *STEPS)
    files = generate(module, arguments(*words), data, tmp_path)
    sources = {f"after_source_{i}.wav" for i in range(4)}
    assert {f.name for f in files} == {
        "before.wav",
        "after.wav",
        "rendered.wav",
        "spectrograms.png",
        "transcription.png",
    } | sources
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in files}
    audio, rate = soundfile.read(tmp_path / "after.wav")
    assert rate == 16000 and len(audio) == 64000 and np.isfinite(audio).all()


def test_timbres_and_melodies_reach_the_renderer_as_asked(module, data, tmp_path, monkeypatch):
    asked = []

    def spy(_, timbre, pitch, noise, **words):
        asked.append((timbre, pitch))
        return torch.zeros_like(noise)

    monkeypatch.setattr(module.model.pitch_encoder, "binarised", False)  # untrained, no bit would be on
    monkeypatch.setattr(generation, "render", spy)
    monkeypatch.setattr(generation, "_audio", lambda *_: [])
    monkeypatch.setattr(generation, "_pictures", lambda *_: [])
    generate(
        module,
        arguments("--sample", 0, "--swap-timbre", 0, 1, "--swap-pitch", 1, 2, "--transpose", 3, 5),
        data,
        tmp_path,
    )
    half = len(asked) // 2  # windows come in chunks, first as they are, then as asked for
    (timbre, pitch), (new_timbre, new_pitch) = asked[0], asked[half]
    assert torch.equal(new_timbre, timbre[:, [1, 0, 2, 3]])
    torch.testing.assert_close(new_pitch[:, :3], pitch[:, [0, 2, 1]], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(new_pitch[:, 3], pitch[:, 3])


def test_one_source_of_own_recordings_with_another_instrument(module, data, tmp_path):
    mix, other = tone(tmp_path / "mix.wav", 0.61), tone(tmp_path / "organ.flac", 0.3, 8000, hertz=300)
    queries = [tone(tmp_path / "horn.wav", 0.2), tone(tmp_path / "reed.wav", 0.2, hertz=600)]
    words = ("--mix", mix, "--query", *queries, "--only", 1, "--replace-instrument", 1, other, *STEPS)
    files = generate(module, arguments(*words), data, tmp_path / "out")
    assert {f.name for f in files} == {"before.wav", "after_source_1.wav", "spectrograms.png", "transcription.png"}
    audio, _ = soundfile.read(tmp_path / "out/after_source_1.wav")
    assert len(audio) / 16000 == pytest.approx(0.61, abs=0.011)


def test_a_query_is_as_long_as_the_run_wants_it(module, data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "sizes", module.sizes.model_copy(update={"query_frames": 100}))
    heard = []
    monkeypatch.setattr(generation, "_encoded", lambda _, __, given: heard.append(given.queries) or 1 / 0)
    mix, long, short = (tone(tmp_path / name, s) for name, s in (("m.wav", 0.61), ("l.wav", 1.2), ("s.wav", 0.9)))
    for words in (("--sample", 0), ("--mix", mix, "--query", long)):
        with pytest.raises(ZeroDivisionError):
            generate(module, arguments(*words), data, tmp_path / "out")
    assert [queries.shape[-1] for queries in heard] == [100, 100]
    with pytest.raises(UserError, match=r"s\.wav lasts 0\.90 s; at least 1\.00 s are needed"):
        generate(module, arguments("--mix", mix, "--query", short), data, tmp_path / "out")


def test_windows_start_from_one_noise_and_nothing_else_is_drawn(module, data):
    given = generation.inputs.given(module, arguments("--sample", 0), data, 16, 1)
    noise = generation._noise(given, 5, (8, 4, 16), 0)
    assert len(given.starts) == len(noise) == 49
    assert torch.equal(noise[0, :, :, 2:], noise[1, :, :, :2])
    assert torch.equal(noise, generation._noise(given, 5, (8, 4, 16), 0))
    assert not torch.equal(noise, generation._noise(given, 5, (8, 4, 16), 1))
    latents = encode(module, MelDct(), given.windows[:2], given.queries.expand(2, -1, -1, -1))
    torch.manual_seed(1)
    one = render(module, latents.timbre, latents.pitch, noise[:2])
    torch.manual_seed(2)
    assert torch.equal(one, render(module, latents.timbre, latents.pitch, noise[:2]))
    assert to_mel(module, MelDct(), one).shape == (2, 5, 64, 16)


def test_what_training_shows(module, data, tmp_path):
    manifest = read_manifest(data)
    from pipeline.loader import Evaluation

    module.sample(next(iter(Evaluation(manifest, "valid", batch_size=2))), tmp_path, 10)
    assert {f.name for f in tmp_path.iterdir()} == {
        "swap.png",
        "transcription.png",
        "recorded.wav",
        "rendered.wav",
        "swapped.wav",
    }


def wrong(tmp_path):
    """(words, what the sentence says)"""
    good = tone(tmp_path / "good.wav")
    return [
        (("--sample", 3), r"0\.\.2"),
        (("--sample", 0, "--swap-pitch", 0, 4), r"0\.\.3"),
        (("--sample", 0, "--only", 4), r"0\.\.3"),
        (("--sample", 0, "--note", 0, 60, 100), r"24\.\.87"),
        (("--sample", 0, "--note", 7, 60, 62), r"0\.\.3"),
        (("--sample", 0, "--transpose", 0, 90), "leaves the notes"),
        (("--sample", 0, "--steps", 0), r"1\.\.1000"),
        (("--sample", 0, "--replace-instrument", "flute", "0"), "takes a source and a file"),
        (("--sample", 0, "--replace-instrument", 0, tmp_path / "none.wav"), "not there"),
        (("--sample", 0, "--mix", good, "--query", good), "use one of them"),
        (("--mix", good), "--query"),
        (("--mix", tone(tmp_path / "short.wav", 0.1), "--query", good), r"at least 0\.16 s"),
    ]


def test_wrong_inputs_are_told_in_one_sentence(module, data, tmp_path):
    for words, says in wrong(tmp_path):
        with pytest.raises(UserError, match=says) as caught:
            generate(module, arguments(*words), data, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
