"""Slakh2100's four stems: what a sample is against its track's files, the splits, and every trap by its name."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import yaml

from data_prep import audio as audio_files
from data_prep import slakh_reader
from data_prep.audio import pcm16
from data_prep.demo_slakh import FOLDERS, _render_track, plan, render
from data_prep.slakh import RECIPES
from data_prep.slakh_reader import STEMS, is_upsampled
from data_prep.stage import BadInput
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from tests.data_prep.building import build, samples, tree

STAGE = RECIPES["slakh_stems_demo"]
RATE = 44100


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    assert list(render(out, 8, 3, workers=2))[-1] == 8
    return out


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory) -> Path:
    folder, quarantined = build(corpus, tmp_path_factory.mktemp("prepared") / STAGE.recipe, STAGE)
    assert quarantined == {}
    return folder


@pytest.fixture
def track(corpus, tmp_path) -> Path:
    """A copy of a track's folder, to spoil."""
    shutil.copytree(corpus / "slakh2100/validation/Track01501", tmp_path / "one/train/Track01501")
    return tmp_path / "one/train/Track01501"


def load(track: Path, stage=STAGE):
    source = track.parents[1]
    item = next(item for item in stage.scan(source) if item.name == track.name)
    return stage.load(item, lambda path: (source / path).read_bytes())


def reason(track: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load(track)
    return str(caught.value)


def edit(track: Path, change) -> None:
    tree = yaml.safe_load((track / "metadata.yaml").read_text())
    change(tree)
    (track / "metadata.yaml").write_text(yaml.safe_dump(tree))


def test_fields_shapes_and_levels(prepared):
    info = read_manifest(prepared).info
    assert (info["sample_rate"], info["segment"], info["tracks"]) == (RATE, 131072, [*STEMS, "mixture"])
    every = samples(prepared)
    assert len(every) == sum(info["samples"].values()) > 80
    for sample in every:
        assert (sample["stems"].shape, sample["stems"].dtype) == ((4, 131072), np.int16)
        assert sample["present"].dtype == bool
        assert sample["pad"] == 0, "a track longer than a segment is never padded"
        assert [sample[k].shape for k in ("lufs", "peak", "clipped", "silence")] == [(5,)] * 4
        assert not sample["stems"][~sample["present"]].any()
        mixture = sample["stems"].sum(axis=0, dtype=np.int64)
        assert np.abs(mixture).max() <= 32767, "the stored stems add up to a mixture in 16 bits"
        assert sample["peak"][4] == pytest.approx(20 * np.log10(np.abs(mixture).max() / 32768), abs=1e-3)
        assert (sample["lufs"][:4][~sample["present"]] == -70).all()
        assert -40 < sample["lufs"][4] < -8
    assert len({s["__key__"] for s in every}) == len(every)


def test_stems_are_the_files_summed_by_program(corpus, prepared):
    for sample in samples(prepared)[::11]:
        meta = sample["meta"]
        folder = corpus / "slakh2100" / meta["folder"] / meta["track"]
        facts = yaml.safe_load((folder / "metadata.yaml").read_text())["stems"]
        expected = np.zeros((4, 131072), np.int64)
        for source, stem in facts.items():
            name = {"Bass": 0, "Drums": 1, "Guitar": 2, "Piano": 3}.get(stem["inst_class"])
            if name is not None and (folder / f"stems/{source}.flac").exists():
                cut = soundfile.read(folder / f"stems/{source}.flac", dtype="int16")[0][meta["start"] :][:131072]
                expected[name, : len(cut)] += cut
        assert np.abs(sample["stems"] - meta["gain"] * expected).max() <= 0.51


def test_segments_reach_from_the_first_sample_to_the_last(corpus, prepared):
    of_one = sorted(s["meta"]["start"] for s in samples(prepared) if s["meta"]["track"] == "Track00001")
    length = soundfile.info(corpus / "slakh2100/train/Track00001/mix.flac").frames
    assert (of_one[0], of_one[-1] + 131072) == (0, length)
    assert all(abs(b - a - 131072) <= 131072 / 2 for a, b in itertools.pairwise(of_one))


def test_two_workers_write_the_bytes_of_one(corpus, prepared, tmp_path):
    assert tree(build(corpus, tmp_path / STAGE.recipe, STAGE, workers=2)[0]) == tree(prepared)


def test_the_card_shows_loudness_and_tells_what_was_missing(prepared):
    card = (prepared / "README.md").read_text()
    assert (prepared / "loudness.png").read_bytes()[:4] == b"\x89PNG"
    assert "![Loudness of the samples](loudness.png)" in card
    assert "1 tracks went to train" in card
    assert "TimGM6mb.sf2" in card


# --- splits -----------------------------------------------------------------------------------------------------------------------


def test_twins_never_lie_in_two_splits(corpus, prepared):
    twin = samples(prepared)
    seen = {s["meta"]["track"]: s["split"] for s in twin}
    assert seen["Track01877"] == seen["Track00001"] == "train", "the test folder's twin of a train track"
    assert seen["Track01876"] == "test"
    groups: dict[str, set[str]] = {}
    for item in STAGE.scan(corpus):
        groups.setdefault(item.group, set()).add(item.split)
    assert all(len(splits) == 1 for splits in groups.values())


@pytest.mark.parametrize("kept", ["UUID", "all_src.mid"])
def test_one_mark_is_enough_to_know_a_twin(corpus, tmp_path, kept):
    """The same UUID with another file, or the same file with another UUID or none."""
    for split, track in (("train", "Track00001"), ("test", "Track01877")):
        shutil.copytree(corpus / "slakh2100" / split / track, tmp_path / split / track)
    other = tmp_path / "test/Track01877"
    if kept == "UUID":
        (other / "all_src.mid").write_bytes((other / "MIDI/S00.mid").read_bytes())
    else:
        edit(other, lambda tree: tree.pop("UUID"))
        edit(tmp_path / "train/Track00001", lambda tree: tree.update(UUID="0" * 32))
    assert {item.split for item in STAGE.scan(tmp_path)} == {"train"}


def test_one_recording_under_two_names_is_refused(corpus, tmp_path):
    """Without metadata and MIDI only the audio can tell."""
    for split, name in (("train", "Track00001"), ("test", "Track01900")):
        (tmp_path / "in" / split / name).mkdir(parents=True)
        shutil.copy(corpus / "slakh2100/train/Track00001/stems/S00.flac", tmp_path / "in" / split / name / "piano.wav")
    with pytest.raises(UserError, match="one recording lies under the names"):
        build(tmp_path / "in", tmp_path / "out", STAGE)


# --- traps ------------------------------------------------------------------------------------------------------------------------


def test_a_missing_stem_is_silent_and_marked(corpus):
    song = load(corpus / "slakh2100/train/Track00002")
    assert song.present.tolist() == [True, True, False, True]
    assert not song.stems[2].any()


def test_a_stem_that_exists_as_midi_only_is_named(corpus):
    song = load(corpus / "slakh2100/train/Track00003")
    assert song.present.tolist() == [True, True, False, True]
    assert song.facts["unrendered"] == ["S01"]


def test_a_rendered_stem_without_its_file_is_a_lost_one(track):
    (track / "stems/S01.flac").unlink()
    assert reason(track) == "stems/S01.flac (guitar) is missing, metadata.yaml says that it was rendered"


def test_the_files_decide_where_the_metadata_calls_all_unrendered(track):
    """As in BabySlakh."""
    edit(track, lambda tree: [stem.update(audio_rendered=False) for stem in tree["stems"].values()])
    assert load(track).present.all()


def test_stems_that_end_early_end_in_zeros_and_far_too_early_are_refused(corpus, track):
    audio, _ = soundfile.read(track / "stems/S02.flac", dtype="int16")
    soundfile.write(track / "stems/S02.flac", audio[: -RATE // 2], RATE)
    song = load(track)
    assert song.stems.shape[1] == len(audio)
    assert not song.stems[0, -RATE // 2 :].any()
    soundfile.write(track / "stems/S02.flac", audio[: -5 * RATE], RATE)
    assert reason(track) == "S02.flac ends 5.00 s before the longest stem"


def resampled(track: Path, rate: int, back: int | None) -> None:
    for path in (track / "stems").iterdir():
        audio = soxr.resample(soundfile.read(path, dtype="float32")[0], RATE, rate, quality="VHQ")
        audio = audio if back is None else soxr.resample(audio, rate, back, quality="VHQ")
        soundfile.write(path, pcm16(np.clip(audio, -0.99, 0.99)), back or rate)


def test_upsampled_material_is_refused(track):
    resampled(track, 22050, RATE)
    assert reason(track) == "no energy above 11 kHz: it was made at 22050 Hz and upsampled to 44100 Hz"


def test_a_lower_rate_is_refused_and_a_higher_one_resampled(corpus, track):
    """Never read at a wrong rate: the same seconds come out of a 48 kHz file."""
    before = load(track).stems
    resampled(track, 48000, None)
    after = load(track).stems
    assert after.shape[1] == pytest.approx(before.shape[1], abs=1)
    n = min(before.shape[1], after.shape[1])
    inner = np.s_[:, 1000 : n - 1000]
    assert np.sqrt(np.mean((after[inner] - before[inner].astype(float)) ** 2)) < 0.01 * np.std(before[inner])
    resampled(track, 22050, None)
    assert reason(track).endswith("has 22050 Hz, 44100 Hz are needed and nothing is upsampled")


def test_a_natural_decay_towards_high_frequencies_is_no_cliff(corpus):
    """Each demo track passes without its drums, which alone reach high."""
    for track in sorted((corpus / "slakh2100/train").iterdir()):
        assert not is_upsampled(load(track).stems[[0, 2, 3]], RATE, 4), track
    assert not is_upsampled(np.zeros((4, RATE), np.int16), RATE, 1)


def test_a_track_is_refused_on_nothing_less_than_all_of_it():
    """High frequencies in one short stretch, where none of the windows lies that are looked at first."""
    draw = np.random.default_rng(0)
    dull = np.repeat(pcm16(0.1 * draw.uniform(-1, 1, 10 * RATE).astype(np.float32)), 4)
    dull = np.convolve(dull / 32768, np.hanning(64) / 32, "same")
    stems = np.zeros((4, len(dull)), np.int16)
    stems[0] = pcm16(dull)
    assert is_upsampled(stems, RATE, 1)
    free = slakh_reader.WINDOW * (len(dull) // slakh_reader.WINDOW // 2 + 3)
    stems[1, free : free + 2048] = pcm16(0.3 * draw.uniform(-1, 1, 2048).astype(np.float32))
    assert not is_upsampled(stems, RATE, 2)


def test_files_of_other_kinds_are_added_up_all_the_same(track):
    """24 bits, stereo and 16-bit files in one track: each at its own scale."""
    before = load(track)
    path = track / "stems/S00.flac"
    soundfile.write(path, soundfile.read(path, dtype="float32")[0], RATE, subtype="PCM_24")
    path = track / "stems/S02.flac"
    soundfile.write(path, np.stack([soundfile.read(path, dtype="float32")[0]] * 2, axis=1), RATE, subtype="PCM_16")
    np.testing.assert_array_equal(load(track).stems, before.stems)


def test_a_file_is_read_to_its_end_whatever_its_header_is_believed_of(track, monkeypatch):
    before = load(track).stems
    monkeypatch.setattr(audio_files, "LONGEST", 100_000)
    monkeypatch.setattr(audio_files, "BLOCK", 30_000)
    np.testing.assert_array_equal(load(track).stems, before)


def test_silence_and_other_instruments_only(track):
    for path in (track / "stems").iterdir():
        soundfile.write(path, np.zeros(RATE, np.int16), RATE)
    assert reason(track) == "its stems are silent throughout"
    edit(track, lambda tree: [stem.update(program_num=60, is_drum=False) for stem in tree["stems"].values()])
    assert reason(track) == "it has none of bass, drums, guitar and piano"


def test_damaged_files_are_named(track):
    whole = (track / "stems/S02.flac").read_bytes()
    (track / "stems/S02.flac").write_bytes(whole[: len(whole) // 2])
    assert reason(track).startswith("S02.flac is ")
    (track / "stems/S02.flac").write_bytes(b"<html>")
    assert reason(track).startswith("S02.flac is not readable audio")
    (track / "metadata.yaml").write_text("stems: {S00: [")
    assert reason(track).startswith("metadata.yaml is not valid YAML")
    (track / "metadata.yaml").unlink()
    assert reason(track) == "metadata.yaml is missing: nothing says which stem is which instrument"


def test_a_track_shorter_than_a_segment_is_padded_and_marked(track):
    for path in (track / "stems").iterdir():
        soundfile.write(path, soundfile.read(path, dtype="int16")[0][: 2 * RATE], RATE)
    ((_, fields),), _ = STAGE.assemble([load(track)])
    assert fields["pad"] == 131072 - 2 * RATE
    assert fields["stems"][:, : 2 * RATE].any()
    assert not fields["stems"][:, 2 * RATE :].any()


def test_one_gain_for_all_stems_where_their_sum_would_clip(track):
    """The loudest stem at full scale, and all of them together above it: the balance stays."""
    before = load(track)
    stems = {path: soundfile.read(path, dtype="float32")[0] for path in (track / "stems").iterdir()}
    louder = 0.9999 / max(np.abs(audio).max() for audio in stems.values())
    for path, audio in stems.items():
        soundfile.write(path, louder * audio, RATE)
    after = load(track)
    assert 0.3 < after.gain < 0.9
    assert np.abs(after.stems.astype(int).sum(axis=0)).max() == pytest.approx(0.999 * 32768, abs=3)
    ratio = [np.std(a) / np.std(b) for a, b in zip(after.stems, before.stems, strict=True)]
    assert ratio == pytest.approx([louder * after.gain / before.gain] * 4, rel=0.01)


def test_the_derived_layout_is_read_and_says_what_it_cannot_know(corpus, tmp_path):
    for split in ("train", "validation", "test"):
        for source in sorted((corpus / "slakh2100" / split).iterdir())[:1]:
            folder = tmp_path / "slakh_44100" / split / source.name
            folder.mkdir(parents=True)
            for stem, values in zip(STEMS, load(source).stems, strict=True):
                soundfile.write(folder / f"{stem}.wav", values, RATE)
    (tmp_path / "slakh_44100/train/Track00001/guitar.wav").unlink()
    folder, quarantined = build(tmp_path, tmp_path / "out" / STAGE.recipe, STAGE)
    assert quarantined == {}
    assert {s["split"] for s in samples(folder)} == {"train", "valid", "test"}
    absent = {tuple(s["present"]) for s in samples(folder, "train")}
    assert absent == {(True, True, False, True)}
    assert "3 tracks came without metadata and MIDI" in (folder / "README.md").read_text()


def test_clipping_is_counted_in_runs(track):
    audio, _ = soundfile.read(track / "stems/S02.flac", dtype="float32")
    soundfile.write(track / "stems/S02.flac", np.clip(30 * audio, -1, 0.99999), RATE)
    _, fields = STAGE.assemble([load(track)])[0][0]
    assert fields["clipped"][0] > 50
    assert fields["clipped"][1:4].tolist() == [0, 0, 0]


def test_other_layouts_are_named(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        STAGE.scan(tmp_path / "absent")
    with pytest.raises(UserError, match="is empty"):
        STAGE.scan(tmp_path)
    (tmp_path / "main_dataset").mkdir()
    with pytest.raises(UserError, match=r"is not laid out as expected: .*found main_dataset"):
        STAGE.scan(tmp_path)
    (tmp_path / "train/Tracks").mkdir(parents=True)
    with pytest.raises(UserError, match="has no track folder"):
        STAGE.scan(tmp_path)


def test_the_demo_corpus_is_the_same_for_the_same_seed(corpus, tmp_path):
    for track in (plan(8, 3)[3], plan(8, 3)[-1]):
        _render_track(tmp_path, track)
        folder = f"{FOLDERS[track.split]}/{track.name}"
        assert tree(tmp_path / folder) == tree(corpus / "slakh2100" / folder), "also in another process"
    assert list(render(corpus, 8, 3)) == []
    with pytest.raises(UserError, match="6 at least"):
        list(render(tmp_path / "few", 5, 3))
