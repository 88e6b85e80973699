"""Diff-MST that begins with weights: CNN14's and other encoders' from the weights folder, and whole runs to be fine-tuned."""

import pytest
import torch
from safetensors.torch import save_file

from models.codecs.weights import ENVIRONMENT
from models.diff_mst.networks import SpectrogramEncoder
from models.diff_mst.pretrained import translated
from pipeline.errors import UserError
from pipeline.files import hash_file
from tests.models.helpers import build, load

TINY = (
    "model.encoder.channels=[4,8]", "model.encoder.groups=2", "model.controller.width=16", "model.controller.layers=1",
    "model.controller.heads=2", "model.controller.feed_forward=32",
)  # fmt: skip
PRETRAINED = "model.encoder.pretrained=given"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    (tmp_path / "given").mkdir()
    return tmp_path / "given"


def cnn14(channels=(4, 8)):
    """A state dict with the names of the published CNN14, among them those that have no counterpart here."""
    state = {"bn0.weight": torch.ones(64), "spectrogram_extractor.stft.conv_real.weight": torch.ones(3, 1, 4)}
    state |= {
        "logmel_extractor.melW": torch.ones(5, 64),
        "fc1.weight": torch.ones(8, 8),
        "fc_audioset.bias": torch.ones(527),
    }
    inputs = 1
    for block, outputs in enumerate(channels, start=1):
        for number, before in ((1, inputs), (2, outputs)):
            state[f"conv_block{block}.conv{number}.weight"] = torch.randn(outputs, before, 3, 3)
            bn = f"conv_block{block}.bn{number}"
            state |= {
                f"{bn}.{what}": torch.randn(outputs) for what in ("weight", "bias", "running_mean", "running_var")
            }
            state[f"{bn}.num_batches_tracked"] = torch.tensor(7)
        inputs = outputs
    return state


def test_cnn14_is_what_every_encoder_begins_with(folder):
    state = cnn14()
    torch.save({"iteration": 600000, "model": state}, folder / "Cnn14.pth")
    module = build(load("diff_mst_demo_reference", *TINY, PRETRAINED))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert module.load_pretrained() == {"given/Cnn14.pth": hash_file(folder / "Cnn14.pth")}
    for encoder in (module.model.track_encoder, module.model.reference_encoder):
        assert torch.equal(encoder.blocks[1].conv2.weight, state["conv_block2.conv2.weight"])
        assert torch.equal(encoder.blocks[0].norm1.bias, state["conv_block1.bn1.bias"])
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("_encoder.blocks." in name for name in changed)
    values = module.training_step(module.example_batch(2), 1)
    assert torch.isfinite(values["loss"])


def test_cnn14_has_a_place_for_every_weight_at_the_papers_size():
    config = load("diff_mst")
    with torch.device("meta"):
        encoder = SpectrogramEncoder(config.model.encoder, config.model.controller.width, 44100)
        state = translated(cnn14((64, 128, 256, 512, 1024, 2048)))
    own = {name: value.shape for name, value in encoder.state_dict().items() if name.startswith("blocks.")}
    assert {name: value.shape for name, value in state.items()} == own


def test_the_encoder_of_a_run_is_one_too(folder):
    other = build(load("diff_mst_demo", *TINY), seed=5)
    save_file(other.state_dict(), folder / "exported.safetensors")
    module = build(load("diff_mst_demo", *TINY, PRETRAINED))
    module.load_pretrained()
    for name, value in module.model.track_encoder.state_dict().items():
        assert torch.equal(value, other.model.track_encoder.state_dict()[name]), name


def test_without_a_name_nothing_is_loaded(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert build(load("diff_mst_demo", *TINY)).load_pretrained() == {}


def test_weights_that_cannot_be_used_are_said_in_a_sentence(folder, monkeypatch):
    module = build(load("diff_mst_demo", *TINY, PRETRAINED))

    def refusal():
        with pytest.raises(UserError) as told:
            module.load_pretrained()
        for path in folder.iterdir():
            path.unlink()
        return str(told.value)

    assert "must hold one file of weights" in refusal()
    state = cnn14()
    for name in ("a.pth", "b.pth"):
        torch.save(state, folder / name)
    assert "there: a.pth, b.pth" in refusal()
    torch.save({k: v for k, v in state.items() if k != "conv_block2.conv1.weight"}, folder / "a.pth")
    assert "missing blocks.1.conv1.weight" in refusal()
    torch.save(cnn14((4, 16)), folder / "a.pth")
    assert "reshaped blocks.1.conv1.weight" in refusal()
    torch.save(cnn14((4, 8, 8)), folder / "a.pth")
    assert "unknown blocks.2.conv1.weight" in refusal()
    torch.save({"model": object}, folder / "a.pth")
    assert "nothing else is loaded" in refusal()
    torch.save([torch.ones(2)], folder / "a.pth")
    assert "no weights by name" in refusal()
    (folder / "a.safetensors").write_bytes(b"no tensors")
    assert "no safetensors file" in refusal()
    monkeypatch.delenv(ENVIRONMENT)
    assert f"set {ENVIRONMENT}=DIR" in refusal()


def test_a_run_is_fine_tuned_in_another_regime_and_refused_where_it_does_not_fit():
    """``init_from``: what learned from other songs' references goes on with references of the same song."""
    first = build(load("diff_mst_demo_reference", *TINY), seed=3)
    tuned = build(load("diff_mst_demo", *TINY, "model.reference=same"))
    batch = tuned.example_batch(2)
    tuned.start_from({"init_from": first.state_dict()})
    view = tuned.view(batch)
    assert torch.equal(tuned.mixed(view)[1]["track"], first.mixed(view)[1]["track"])
    (optimizer,) = tuned.configure_optimizers().values()
    tuned.training_step(batch, 1)["loss"].backward()
    optimizer.step()
    assert not torch.equal(tuned.mixed(view)[1]["track"], first.mixed(view)[1]["track"])
    with pytest.raises(RuntimeError, match="reference_encoder"):
        build(load("diff_mst_demo", *TINY)).start_from({"init_from": first.state_dict()})
