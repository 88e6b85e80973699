"""Diff-MST: the paper's size, four regimes without a leak, whole songs with presets, figures; and every input that cannot be used."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_prep.demo_vocals import STYLE
from models.blocks.console.settings import named
from models.diff_mst import data as facts
from models.diff_mst.baselines import Recipe
from models.diff_mst.config import EncoderShape, Weights
from models.diff_mst.evaluate import evaluate, partners
from models.diff_mst.generate import add_arguments, generate
from models.diff_mst.networks import LongTermSpectrum, MixingEngineer
from models.diff_mst.objectives import audio_features, distances, weighted
from models.diff_mst.preset import read_preset
from models.diff_mst.truth import parameter_errors, stand, true_stand, typical
from models.features import OCTAVES_HIGHEST, OCTAVES_LOWEST, octave_bands
from models.losses import multi_resolution_octaves, multi_resolution_stft
from pipeline.errors import UserError
from tests.models.helpers import build, channels_last_wanted, load
from tests.pipeline.shard_factory import write_prepared

TINY = (
    "model.encoder.channels=[4,8]", "model.encoder.groups=2", "model.controller.width=16", "model.controller.layers=1",
    "model.controller.heads=2", "model.controller.feed_forward=32",
)  # fmt: skip
OTHER = ("model.reference=other", "model.weights={stft: 0, bark: 1}", "data.partner=true")
RATE = 48000


def tiny(*overrides):
    return build(load("diff_mst_demo", *TINY, *overrides))


def test_an_encoder_keeps_its_channels_last_all_the_way():
    """Whether its norms see few channels or many."""
    module = tiny("model.encoder.channels=[4,8,8]")
    with channels_last_wanted(module) as apart:
        module.training_step(module.example_batch(2), 1)
    assert apart == []


def test_no_gradient_goes_through_a_feature_without_a_weight():
    wave = (0.1 * torch.randn(1, 2, 40000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    weights = Weights(stft=0, octaves=0, rms=1, crest=0, width=0, imbalance=0, bark=0)
    found = distances(wave, torch.zeros(1, 2, 40000), RATE, weights)
    found["bark"].register_hook(lambda _: pytest.fail("the bark spectrum has no weight, and a gradient"))
    loss = weighted(found, weights)
    loss.sum().backward()
    assert torch.equal(loss, found["rms"]) and wave.grad.any()


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def voice(path, seconds=4.0, rate=RATE, channels=1, level=0.2):
    time = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * k * 220 * time) / k for k in range(1, 9)) * level * (0.6 + 0.4 * np.sin(5 * time))
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate, subtype="PCM_24")
    return path


# --- networks and regimes ---------------------------------------------------------------------------------------------------------


def test_the_papers_size_has_the_papers_count():
    config = load("diff_mst")
    with torch.device("meta"):
        model = MixingEngineer(config.model, config.model.console.layout(44100))
    assert sum(p.numel() for p in model.parameters()) == 190_923_982
    assert {name: head.linear.out_features for name, head in model.heads.items()} == {
        "track": 27,
        "bus": 25,
        "master": 26,
    }


@pytest.mark.parametrize("name", ["diff_mst_vocal", "diff_mst_reference_same", "diff_mst_reference_other"])
def test_every_config_builds_on_its_recipe(name):
    module = build(load(name))
    assert sum(p.numel() for p in module.parameters()) < 4_000_000, "sized for a few hundred pairs"


@pytest.mark.parametrize(("overrides", "changed", "heard"), [
    (("model.reference=same",), "reference", True),
    (("model.reference=same",), "mixed", False),
    (OTHER, "other_mixed", True),
    (OTHER, "mixed", False),
    (OTHER, "reference", False),
    ((), "mixed", False),
    ((), "reference", False),
])  # fmt: skip
def test_settings_come_from_the_reference_and_never_from_what_is_wanted(overrides, changed, heard):
    module = tiny(*overrides).eval()
    batch = module.example_batch(2)
    other = batch | {changed: (batch[changed].flip(-1) // 4)}
    with torch.no_grad():
        settings = [module.mixed(module.view(b))[1]["track"] for b in (batch, other)]
    assert torch.equal(*settings) != heard


def test_a_reference_of_another_song_is_what_the_mix_is_compared_with():
    module = tiny(*OTHER)
    batch = module.example_batch(2)
    values = module.validation_step(batch, 1)
    assert "stft" not in values
    assert module.validation_step(batch | {"mixed": batch["mixed"] // 2}, 1)["loss"] == values["loss"]


def test_samples_without_a_reference_do_not_count():
    module = tiny("model.reference=same")
    batch = module.example_batch(2)
    alone = module.validation_step({n: v[:1] for n, v in batch.items()}, 1)["loss"]
    half = batch | {"has_reference": torch.tensor([True, False])}
    assert float(module.validation_step(half, 1)["loss"]) == pytest.approx(float(alone) / 2, rel=1e-4)


def test_a_step_does_not_depend_on_who_shares_its_batch():
    module = tiny().train()
    batch = module.example_batch(3)
    whole = module.training_step(batch, 1)["loss"]
    parts = [module.training_step({n: v[i : i + 1] for n, v in batch.items()}, 1)["loss"] for i in range(3)]
    assert float(whole.detach()) == pytest.approx(float(torch.stack(parts).mean().detach()), rel=1e-4)


def test_made_mixes_are_keyed_and_of_another_half():
    module = build(load("diff_mst", *TINY, "data.recipe=slakh_stems_demo"))
    batch = module.example_batch(2)
    seen, again = module.view(batch), module.view(batch)
    assert torch.equal(seen.like, again.like)
    assert seen.tracks.shape == (2, 4, 65536) and seen.reference.shape == seen.like.shape == (2, 2, 65536)
    flipped = batch | {"stems": torch.cat([batch["stems"][..., :65536] // 2, batch["stems"][..., 65536:]], -1)}
    assert torch.equal(module.view(flipped).like, seen.like) and not torch.equal(
        module.view(flipped).reference, seen.reference
    )
    moved = batch | {"position": batch["position"] + 1}
    assert not torch.equal(module.view(moved).like, seen.like)
    module.training_step(batch, 1)["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_crops_are_aligned():
    module = tiny("model.crop=20000", "model.lead_in=0")
    batch = module.example_batch(3)
    batch["mixed"] = batch["raw"].expand(-1, 2, -1).clone()
    seen = module.view(batch, "train")
    assert seen.tracks.shape == (3, 1, 20000)
    assert torch.equal(seen.heard, batch["raw"] / 32768), "what is listened to is the whole segment"
    assert torch.equal(seen.tracks.expand(-1, 2, -1), seen.like)


@pytest.mark.parametrize(("overrides", "sentence"), [
    (("model.reference=other",), "not aligned with the mix"),
    ((*OTHER, "data.partner=false"), "set data.partner=true"),
    (("model.reference=made",), "trains on multitracks"),
    (("model.crop=999999",), "set it to at most that"),
    (("model.encoder.channels=[4,4,4,4,4,4,4,4]",), "too short for the encoder"),
    (("model.lead_in=1.2",), "set it lower"),
    (("model.console.tracks=2",), "model.console.tracks is 2"),
    (("model.encoder.groups=3",), "does not divide"),
    (("model.weights={stft: 0, octaves: 0, rms: 0, crest: 0, width: 0, imbalance: 0, bark: 0}",), "nothing to minimise"),
])  # fmt: skip
def test_what_does_not_fit_is_said_in_a_sentence(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        build(load("diff_mst_demo", *overrides))


def test_an_encoder_hears_where_in_the_spectrum_something_stands():
    """Band by band, at any level of the rest: what the long-term spectrum adds to CNN14, whose last mean is over frequency."""
    shape = EncoderShape(channels=(4, 8), groups=2, bands=48)
    heard = LongTermSpectrum(shape, 16, RATE)
    heard.out = torch.nn.Identity()
    time = torch.arange(2 * RATE) / RATE
    for hertz in (200, 1000, 6000, 12000):
        tone = 0.1 * torch.sin(2 * torch.pi * hertz * time)[None]
        spectrum = torch.stft(tone, 2048, 2048, window=torch.hann_window(2048), return_complex=True)
        cosines = heard(spectrum.abs().square().transpose(-1, -2))[:, :48]
        bands = cosines @ heard.cosines / 0.09 + heard.tilt  # the cosines are orthogonal
        middles = OCTAVES_LOWEST * (OCTAVES_HIGHEST / OCTAVES_LOWEST) ** torch.linspace(0, 1, 48)
        assert abs(float((middles[bands[0].argmax()] / hertz).log2())) < 0.1
    bank = octave_bands(48, 2048, RATE)
    assert torch.allclose(bank.sum(0), torch.ones(48)) and bank.shape == (1025, 48)


def test_what_is_heard_reaches_the_settings():
    """A demo that answers every voice with the same settings has learned nothing that a preset does not know."""
    module = build(load("diff_mst_demo"))
    batch = module.example_batch(4)
    (optimizer,) = module.configure_optimizers().values()
    raw = batch["raw"].float()
    dull = torch.nn.functional.avg_pool1d(raw[:2], 33, 1, 16)
    seen = module.view(batch | {"raw": torch.cat([raw[:2], 8 * dull]).clamp(-3e4, 3e4).to(torch.int16)})
    heard = seen.heard[..., :32768]
    for _ in range(40):  # the shelf is to be up where the voice is dull
        shelf = named(module.model.settings(heard)["track"], module.layout.track)["high_shelf_gain"][:, 0, 0]
        loss = (shelf - torch.tensor([-6.0, -6.0, 6.0, 6.0])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 4


# --- objectives -------------------------------------------------------------------------------------------------------------------


def test_features_tell_what_they_are_named_after():
    noise = 0.1 * torch.randn(1, 2, RATE, generator=torch.Generator().manual_seed(0))
    mono = noise[:, :1].expand(-1, 2, -1)
    left = torch.cat([noise[:, :1], torch.zeros_like(noise[:, :1])], 1)
    wide, flat, one = (audio_features(x, RATE) for x in (noise, mono, left))
    assert float(wide["width"]) == pytest.approx(1, abs=0.1) and float(flat["width"]) < 1e-6
    assert float(one["imbalance"]) == pytest.approx(-1) and abs(float(flat["imbalance"])) < 1e-6
    assert torch.allclose(wide["rms"], torch.tensor(0.1), atol=2e-3)
    louder = audio_features(2 * noise, RATE)
    assert torch.allclose(louder["bark"] - wide["bark"], torch.tensor(2.0).log(), atol=1e-3)
    assert torch.allclose(louder["crest"], wide["crest"], atol=1e-4)
    silent = audio_features(torch.zeros(1, 2, RATE), RATE)
    assert all(torch.isfinite(value).all() for value in silent.values())


def test_multi_resolution_stft_is_nothing_for_equals_and_grows():
    noise = 0.1 * torch.randn(2, 2, 20000, generator=torch.Generator().manual_seed(0))
    assert float(multi_resolution_stft(noise, noise).max()) == pytest.approx(0, abs=1e-3)
    near, far = (multi_resolution_stft(gain * noise, noise) for gain in (1.1, 2.0))
    assert (near < far).all() and near.shape == (2,)
    # twice as loud: spectral convergence 1, log magnitude ln 2
    assert torch.allclose(far, torch.tensor(1 + np.log(2)).float(), atol=1e-3)
    with pytest.raises(ValueError, match="too short"):
        multi_resolution_stft(noise[..., :4000], noise[..., :4000])


def test_octaves_tell_how_an_equaliser_is_set_whatever_the_noise():
    """With the same spectrum but other noise the distance is at its least where the gains are equal; the STFT wants less of the noise."""
    mine, theirs = 0.1 * torch.randn(2, 1, 2, RATE, generator=torch.Generator().manual_seed(0))
    gains = [0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4]
    by_octaves, by_bins = (
        [float(distance(gain * mine)) for gain in gains]
        for distance in (
            lambda wave: multi_resolution_octaves(wave, theirs, RATE),
            lambda wave: multi_resolution_stft(wave, theirs),
        )
    )
    assert gains[int(np.argmin(by_octaves))] == 1.0
    assert gains[int(np.argmin(by_bins))] < 1.0
    assert float(multi_resolution_octaves(theirs, theirs, RATE)) == pytest.approx(0, abs=1e-6)
    twice = multi_resolution_octaves(2 * theirs, theirs, RATE)
    assert torch.allclose(twice, torch.tensor(2.0).log(), atol=1e-3) and twice.shape == (1,)
    with pytest.raises(ValueError, match="too short"):
        multi_resolution_octaves(theirs[..., :8000], theirs[..., :8000], RATE)


# --- whole songs ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module():
    return tiny().eval()


@pytest.mark.parametrize(("rate", "channels", "seconds"), [(48000, 1, 4.5), (44100, 2, 1.0), (96000, 1, 0.6)])
def test_a_song_is_mixed_and_its_preset_renders_the_same_bytes(module, tmp_path, rate, channels, seconds):
    raw = voice(tmp_path / "raw.wav", seconds, rate, channels)
    files = generate(module, arguments("--input", raw), tmp_path, tmp_path / "one")
    names = ["mix.wav", "settings.json", "settings.txt", "equaliser.png", "reduction.png", "spectra.png"]
    assert [path.name for path in files] == names and all(path.stat().st_size for path in files)
    mix, found = soundfile.read(files[0])
    assert found == rate and mix.shape[1] == 2 and len(mix) > seconds * rate
    assert np.abs(mix[: int(seconds * rate)]).max() > 0.05
    preset = read_preset(files[1])
    assert (preset.settings["track"].shape[2] > 1) == (seconds > 4), "settings move where there are several windows"
    generate(module, arguments("--input", raw, "--preset", files[1]), tmp_path, tmp_path / "two")
    for name in names[:3]:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_steady_settings_and_a_preset_at_another_rate(module, tmp_path):
    raw = voice(tmp_path / "raw.wav", 4.5)
    generate(module, arguments("--input", raw, "--steady"), tmp_path, tmp_path / "one")
    preset = read_preset(tmp_path / "one/settings.json")
    assert preset.spacing is None and preset.settings["track"].shape[2] == 1
    low = voice(tmp_path / "low.wav", 1.0, 44100)
    generate(module, arguments("--input", low, "--preset", tmp_path / "one/settings.json"), tmp_path, tmp_path / "two")
    assert read_preset(tmp_path / "two/settings.json").layout.sample_rate == 44100


def test_a_reference_is_listened_to(tmp_path):
    module = tiny("model.reference=same").eval()
    raw = voice(tmp_path / "raw.wav", 1.0)
    for name, level in (("a", 0.05), ("b", 0.3)):
        liked = voice(tmp_path / f"{name}.wav", 1.0, 44100, 2, level)
        generate(module, arguments("--input", raw, "--reference", liked), tmp_path, tmp_path / name)
    assert (tmp_path / "a/settings.json").read_bytes() != (tmp_path / "b/settings.json").read_bytes()
    with pytest.raises(UserError, match="mixes after a reference"):
        generate(module, arguments("--input", raw), tmp_path, tmp_path)


def test_a_clipped_input_is_mixed_and_said(module, tmp_path, capsys):
    raw = voice(tmp_path / "raw.wav", 1.0, level=2.0)
    generate(module, arguments("--input", raw), tmp_path, tmp_path / "out")
    assert "at full scale in" in capsys.readouterr().err
    assert np.abs(soundfile.read(tmp_path / "out/mix.wav")[0]).max() <= 1


@pytest.mark.soak
def test_ten_minutes_are_mixed_in_one_go(module, tmp_path):
    raw = voice(tmp_path / "raw.wav", 600.0)
    generate(module, arguments("--input", raw), tmp_path, tmp_path / "out")
    mix, _ = soundfile.read(tmp_path / "out/mix.wav")
    assert 600 * RATE < len(mix) < 602 * RATE
    levels = np.abs(mix[: 600 * RATE]).reshape(600, -1).max(1)
    assert levels.min() > 0.1 * levels.max(), "no second is missing"
    assert read_preset(tmp_path / "out/settings.json").settings["track"].shape[2] > 400


def test_a_kill_leaves_the_old_preset(module, tmp_path, monkeypatch):
    raw = voice(tmp_path / "raw.wav", 0.6)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.json").write_text("the one before")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        generate(module, arguments("--input", raw), tmp_path, tmp_path / "out")
    assert (tmp_path / "out/settings.json").read_text() == "the one before"


def test_what_cannot_be_mixed_is_said_in_a_sentence(module, tmp_path):
    raw = voice(tmp_path / "raw.wav", 1.0)
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    cases = [
        ((), "say what to mix"),
        (("--input", raw, raw), "2 files; this run mixes 1"),
        (("--input", tmp_path / "absent.wav"), "not there"),
        (("--input", tmp_path), "a folder"),
        (("--input", tmp_path / "text.wav"), "not audio that can be read"),
        (("--input", tmp_path / "silent.wav"), "silent"),
        (("--input", voice(tmp_path / "short.wav", 0.2)), "at least 0.50 s"),
        (("--input", voice(tmp_path / "low.wav", 1.0, 22050)), "at least 32000 Hz"),
        (("--input", raw, "--reference", raw), "takes no reference"),
        (("--input", raw, "--preset", tmp_path / "absent.json"), "cannot be read"),
        (("--input", raw, "--preset", tmp_path / "text.wav"), "is not JSON"),
    ]
    for words, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            generate(module, arguments(*words), tmp_path, tmp_path / "out")


def test_a_spoilt_preset_is_said_in_a_sentence(module, tmp_path):
    raw = voice(tmp_path / "raw.wav", 1.0)
    generate(module, arguments("--input", raw), tmp_path, tmp_path)
    whole = json.loads((tmp_path / "settings.json").read_text())

    def spoil(change):
        tree = json.loads(json.dumps(whole))
        change(tree)
        (tmp_path / "spoilt.json").write_text(json.dumps(tree))
        with pytest.raises(UserError) as told:
            generate(
                module, arguments("--input", raw, "--preset", tmp_path / "spoilt.json"), tmp_path, tmp_path / "out"
            )
        return str(told.value)

    assert "format 9" in spoil(lambda t: t.update(format=9))
    assert "'pan' is missing" in spoil(lambda t: t["tracks"][0]["settings"][0].pop("pan"))
    assert "track.pan is 3" in spoil(lambda t: t["tracks"][0]["settings"][0].update(pan=3))
    assert "track.ratio is nan" in spoil(lambda t: t["tracks"][0]["settings"][0].update(ratio=float("nan")))
    assert "0 tracks for a console of 1" in spoil(lambda t: t["tracks"].clear())
    assert "console.tracks: input should be greater than 0" in spoil(lambda t: t["console"].update(tracks=0))
    assert "console.bands" in spoil(lambda t: t["console"].update(bands=["treble"]))
    assert "unknown key console.colour" in spoil(lambda t: t["console"].update(colour=1))
    assert "is no preset" in spoil(lambda t: t.update(tracks=7))
    assert "need a spacing" in spoil(lambda t: t["tracks"][0]["settings"].append(t["tracks"][0]["settings"][0]))


# --- figures ----------------------------------------------------------------------------------------------------------------------


def sample(number):
    random = np.random.default_rng(number)
    raw = np.cumsum(random.normal(size=(1, 131072)), axis=1)
    raw = (6000 * (raw - raw.mean()) / np.abs(raw).max()).astype(np.int16) + random.integers(
        -300, 300, (1, 131072), np.int16
    )
    mixed = np.repeat(2 * raw, 2, axis=0)
    settings = {"bands": [vars(band) for band in STYLE.bands], "threshold": -26.0, "ratio": 4.0, "attack": 8.0, "release": 120.0,
                "make_up": 5.0, "gain": 0.0, "reverb_send": -14.0, "pan": 0.0, "reverb_seconds": 1.2, "latency": 0}  # fmt: skip
    return {
        "raw": raw, "mixed": mixed, "reference": mixed[:, ::-1].copy(), "has_reference": np.asarray(True),
        "song": np.int64(number // 2), "lufs": np.full(3, -20, np.float32), "meta": {"name": f"song {number // 2}", "settings": settings},
    }  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_songs(tmp_path_factory.mktemp("shards"))


def write_songs(folder):
    return write_prepared(
        folder, {"train": [2], "valid": [2], "test": [4]}, sample, facts.typical_data(load("diff_mst_demo"))
    )


QUICK = Recipe(segments=1, steps=2, songs=1)


def test_figures_hold_a_run_against_what_it_has_to_beat(module, prepared, tmp_path):
    figures = evaluate(module, prepared, tmp_path, recipe=QUICK)
    for who in ("raw", "matched", "preset", "model", "ceiling"):
        for what in ("stft", "rms", "crest", "width", "imbalance", "bark", "lufs_db", "centroid_hz"):
            figure = figures[f"{who}_{what}"]
            assert figure["count"] == 4 and figure["low"] <= figure["value"] <= figure["high"]
    assert isinstance(figures["way"], float)
    assert figures["matched_lufs_db"]["value"] < 0.5 < figures["raw_lufs_db"]["value"]
    errors = {name for name in figures if name.startswith("error_")}
    assert {
        "error_equaliser_db_typical",
        "error_threshold_db_model",
        "error_equaliser_db_preset",
        "error_high_pass_frequency_octaves_ceiling",
    } <= errors


def test_a_run_with_references_is_tried_with_the_wrong_ones(prepared, tmp_path):
    figures = evaluate(tiny(*OTHER).eval(), prepared, tmp_path, recipe=QUICK)
    assert figures.keys() == {"own_reference", "shuffled_reference", "shuffled_is_worse_by"}
    own, shuffled, worse = (
        figures[n]["value"] for n in ("own_reference", "shuffled_reference", "shuffled_is_worse_by")
    )
    assert worse != 0 and worse == pytest.approx(shuffled - own, abs=1e-6)


def test_partners_are_of_other_songs():
    samples = [{"song": song, "number": i} for i, song in enumerate("aabbbcd")]
    for apart in (1, 2):
        found = partners(samples, apart)
        assert all(one["song"] != other["song"] for one, other in zip(samples, found, strict=True))
    assert all(one["song"] != other["song"] for one, other in zip(partners(samples), partners(samples, 2), strict=True))


def test_the_true_settings_have_no_error():
    layout = load("diff_mst_demo").model.console.layout(RATE)
    known = sample(0)["meta"]["settings"]
    true = true_stand(known, RATE)
    assert {"threshold", "reverb_decay", "peak_1_q", "pan", "make_up"} <= true.knobs.keys()
    values = {
        name: torch.tensor([true.knobs.get(knob.name, knob.start) for knob in section])[None, None, None]
        for name, section in layout.sections.items()
    }
    errors = parameter_errors(stand(values, layout), true, layout)
    assert len(errors) == len(true.knobs) + 1
    assert max(value for name, value in errors.items() if name != "equaliser_db") < 1e-4
    assert errors["equaliser_db"] < 0.05, "but for 1 % of Q of the high-pass"


def test_what_is_typical_lies_in_the_middle():
    layout = load("diff_mst_demo").model.console.layout(RATE)
    known = sample(0)["meta"]["settings"]
    stands = [true_stand(known | {"ratio": ratio, "pan": pan}, RATE) for ratio, pan in ((2.0, -0.2), (8.0, 0.4))]
    middle = typical(stands, layout)
    assert middle.knobs["ratio"] == pytest.approx(4) and middle.knobs["pan"] == pytest.approx(0.1)
    errors = parameter_errors(middle, stands[0], layout)
    assert errors["ratio_octaves"] == pytest.approx(1, abs=1e-5) and errors["pan_share"] == pytest.approx(0.3)


def test_pictures_of_a_step(module, tmp_path):
    module.sample(module.example_batch(2), tmp_path, 1)
    assert {p.name for p in tmp_path.iterdir()} == {
        "in.wav", "mix.wav", "wanted.wav", "spectra.png", "equaliser.png", "reduction.png", "settings.txt",
    }  # fmt: skip
