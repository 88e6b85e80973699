"""Every system's figures and audio on a device that is not the host: what ``--device cuda`` does, without a GPU."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch

from models import registry
from models.codecs import SAMPLE_RATES, load_codec
from models.dismix.ldm.judges import trained_judges as ldm_judges
from models.dismix.simple.judges import trained_judges as simple_judges
from models.features import waveform
from pipeline.manifest import read_manifest
from pipeline.train_module import TrainModule
from tests.models import cd4mt_data, cqtml_data, jingle_d_data
from tests.models import test_cd4mt_audio as cd4mt_audio
from tests.models import test_cqtml_audio as cqtml
from tests.models import test_diff_mst as diff_mst
from tests.models import test_dismix_audio as dismix
from tests.models import test_dismix_ldm_audio as dismix_ldm
from tests.models.helpers import build, load
from tests.models.stand_in_weights import write_audioldm2, write_encodec, write_music2latent
from tests.pipeline.shard_factory import write_dataset
from tests.second_device import apart, second_device

Case = tuple[
    TrainModule, Path | None, list[Any]
]  # untrained; the data that is measured on; what generation is asked for


def jingle_d(folder: Path) -> Case:
    data = jingle_d_data.write_latents(folder / "audio_pairs_demo-mdct", {"train": [2], "valid": [4, 2]})
    kind = registry.part(load("jingle_d_demo").model, "train_module").TrainModule
    return kind(load("jingle_d_demo", *jingle_d_data.TINY), jingle_d_data.tiny_info()), data, ["--sample", 0]


def cd4mt(folder: Path) -> Case:
    data = cd4mt_data.write_latents(folder, {"train": [3], "valid": [2], "test": [2, 2]})
    facts = cd4mt_data.tiny_info()
    facts["latent"]["source"] = read_manifest(data.with_name("slakh_stems_demo")).identity
    config = load("cd4mt_demo", *cd4mt_data.TINY)
    kind = registry.part(config.model, "train_module").TrainModule
    return kind(config, facts), data, ["--sample", 0, "--make", "piano", "--steps", 2]


def cd4mt_separation(folder: Path) -> Case:
    """By its own guidance, gradients included; figures of it are those of another case."""
    folder.mkdir()
    soundfile.write(folder / "mix.wav", 0.1 * np.random.default_rng(0).normal(size=9000), 16000)
    return build(load("cd4mt_demo", *cd4mt_audio.SMALL)), None, ["--separate", folder / "mix.wav", "--steps", 2]


def dismix_simple(folder: Path) -> Case:
    folder.mkdir()
    return build(load("dismix_demo")), dismix.write_clips(folder), ["--sample", 5, "--swap-timbre", 0, 1]


def dismix_latents(folder: Path) -> Case:
    folder.mkdir()
    module = build(load("dismix_ldm_demo", *dismix_ldm.SMALL, "model.ldm.diffusion.sampling_steps=2"))
    words = ["--sample", 2, "--swap-timbre", 0, 1, "--transpose", 2, 3, "--steps", 2]
    return module, dismix_ldm.write_clips(folder), words


def mixing(folder: Path) -> Case:
    folder.mkdir()
    diff_mst.voice(folder / "raw.wav", 1.0)
    return diff_mst.tiny(), diff_mst.write_songs(folder), ["--input", folder / "raw.wav"]


def mixing_as_shown(folder: Path) -> Case:
    _, data, words = mixing(folder)
    return diff_mst.tiny(*diff_mst.OTHER), data, [*words, "--reference", words[1]]


def lights(folder: Path) -> Case:
    songs = cqtml_data.write_songs(folder, {"train": [2], "valid": [2], "test": [3, 2]}).folder
    return cqtml.made("cqtml_demo", *cqtml.TINY), songs, ["--sample", 0, "--temperature", 1, "--samples", 2]


def policy(folder: Path) -> Case:
    _, songs, words = lights(folder)
    changes = (*cqtml.TINY, "model.reward_model.width=16", "model.grpo.group=3")
    return cqtml.made("cqtml_demo_policy", *changes), songs, words


def reward(folder: Path) -> Case:
    comparisons = write_dataset(folder / "comparisons", [6], "test", cqtml.comparison).folder
    return cqtml.made("cqtml_demo_reward", "model.reward_model.width=16"), comparisons, []


@contextmanager
def in_short() -> Iterator[None]:
    """Judges that learn little, few draws, few iterations of Griffin and Lim."""

    def judges(real: Callable[..., Any], recipe: Any) -> Callable[..., Any]:
        return lambda *given: real(*given, recipe=recipe)

    little = {
        "models.cd4mt.evaluate.SEEDS": 3, "models.cd4mt.evaluate.DRAWS": 4, "models.cd4mt.evaluate.BATCH": 4,
        "models.cd4mt.sampling.DIFFUSION_STEPS": 2,
        "models.dismix.simple.evaluate.trained_judges": judges(simple_judges, dismix.QUICK),
        "models.dismix.ldm.evaluate.trained_judges": judges(ldm_judges, dismix_ldm.QUICK),
        "models.showing.waveform": lambda mel, spec: waveform(mel, spec, iterations=2),
        "models.codecs.meldct.waveform": lambda mel, spec: waveform(mel, spec, iterations=1),
        "models.diff_mst.evaluate.Recipe": lambda: diff_mst.QUICK,
    }  # fmt: skip
    with ExitStack() as stack:
        for name, value in little.items():
            stack.enter_context(mock.patch(name, value))
        yield


def used(make: Callable[[Path], Case], folder: Path) -> tuple[dict[str, Any], dict[str, Any], set[str], set[str]]:
    """Figures there and here, and the names of the files that were written there and here."""
    found = []
    with in_short():
        module, data, words = make(folder / "data")
        module.eval()
        evaluate, generate = (registry.part(module.config.model, part) for part in ("evaluate", "generate"))
        parser = argparse.ArgumentParser()
        generate.add_arguments(parser)
        args = parser.parse_args([str(word) for word in words])

        def use(out: Path) -> None:
            torch.manual_seed(0)
            figures = evaluate.evaluate(module, data, out / "figures") if data else {}
            files = generate.generate(module, args, data or folder, out / "audio") if words else []
            found.append((figures, {file.name for file in files}))

        use(folder / "here")
        with second_device(double=False) as (device, _):  # as on Apple's MPS
            module.to(device)
            use(folder / "there")
    (figures_here, files_here), (figures_there, files_there) = found
    return figures_there, figures_here, files_there, files_here


@pytest.fixture(scope="module")
def process():
    with apart() as process:
        yield process


# What two steps of Adam come to, each as long for a slope that is nearly none, hangs on the last bit.
DESCENT = re.compile("preset|ceiling|^way$")
CASES = [
    jingle_d, cd4mt, cd4mt_separation, dismix_simple, dismix_latents, mixing, mixing_as_shown, lights, policy, reward,
]  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_figures_and_audio(process, make, tmp_path):
    figures, expected, files, expected_files = process.submit(used, make, tmp_path).result()
    assert files == expected_files and figures.keys() == expected.keys()
    for name in (name for name in figures if not DESCENT.search(name)):
        one, other = (
            tree[name]["value"] if isinstance(tree[name], dict) else tree[name] for tree in (figures, expected)
        )
        if isinstance(one, float) and "seconds" not in name and not math.isnan(other):
            assert one == pytest.approx(other, rel=0.05, abs=0.02), name


def coded(name: str, weights: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of one codec, there and here: latents, what is decoded of them, and the gradient where it passes one."""
    wave, found = 0.1 * torch.randn(2, 15360, generator=torch.Generator().manual_seed(0)), []
    for context, device in ((nullcontext(), "cpu"), (second_device(), "gpu:0")):
        with context:
            codec = load_codec(name, weights, device, {"mdct": 44100}.get(name))
            latent = codec.encode(wave).detach().requires_grad_(codec.differentiable)
            decoded = codec.decode(latent).detach()
            seen = [latent.detach(), decoded]
            if codec.differentiable:  # up to the mel, where there is one: gradients of a phase that is found are noise
                getattr(codec, "decode_mel", codec.decode)(latent).square().sum().backward()
                seen.append(latent.grad)
            assert all(tensor.device.type == torch.device(device).type for tensor in seen)
            found.append([tensor.cpu() for tensor in seen])
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("name", SAMPLE_RATES)
def test_codecs(process, name, tmp_path):
    for write in (write_encodec, write_audioldm2, write_music2latent):
        write(tmp_path)
    for expected, found in process.submit(coded, name, tmp_path).result():
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
