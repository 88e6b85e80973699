"""The pretrained codecs on random stand-ins: shapes, gradients, and every way in which a weights folder can be wrong."""

import json
from pathlib import Path

import pytest
import torch

from models.codecs import codec_of, load_codec, weights_identity
from pipeline.errors import UserError
from tests.models.helpers import info
from tests.models.stand_in_weights import LICENCE, declare, write_audioldm2, write_encodec, write_music2latent


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    for write in (write_encodec, write_audioldm2, write_music2latent):
        write(root)
    return root


@pytest.fixture(scope="module")
def encodec(weights):
    return load_codec("encodec", weights)


@pytest.fixture(scope="module")
def audioldm2(weights):
    return load_codec("audioldm2", weights)


def test_encodec_shapes_and_batches(encodec, weights):
    wave = 0.1 * torch.randn(2, 3, 3333)
    latent = encodec.encode(wave)
    assert latent.shape == (2, 3, 128, 11) == (2, 3, *encodec.latent_shape(3333))
    assert encodec.decode(latent).shape == (2, 3, 11 * 320)
    torch.testing.assert_close(encodec.encode(wave[1, 2]), latent[1, 2], atol=1e-5, rtol=1e-4)
    assert encodec.latent_shape(16 * 24000) == (128, 1200)
    assert (encodec.licence, encodec.weights_hash) == (LICENCE, weights_identity("encodec", weights))


def test_where_nothing_was_encoded_encodec_is_looked_at_without_weights(encodec, monkeypatch):
    monkeypatch.delenv("SLURMPHONY_WEIGHTS", raising=False)
    drawn = codec_of(info("jingle_d"))
    shapes = [{name: value.shape for name, value in c.decoder.state_dict().items()} for c in (drawn, encodec)]
    assert shapes[0] == shapes[1] and drawn.weights_hash is None
    real = info("jingle_d")
    real["latent"]["weights_hash"] = "0" * 64
    with pytest.raises(UserError, match="encodec needs its weights"):
        codec_of(real)


def test_gradient_passes_through_encodec_and_leaves_it_frozen(encodec):
    latent = torch.randn(1, 128, 5, requires_grad=True)
    encodec.decode(latent).square().mean().backward()
    assert latent.grad is not None
    assert (latent.grad.abs().amax((0, 1)) > 0).all(), "to every frame"
    assert not any(p.requires_grad or p.grad is not None for p in encodec.decoder.parameters())
    lstms = [part for part in encodec.decoder.modules() if isinstance(part, torch.nn.LSTM)]
    assert lstms and all(part.training and part.dropout == 0 for part in lstms), "cuDNN's backward needs training mode"


def test_audioldm2_shapes_and_axes(audioldm2):
    mel = torch.randn(2, 64, 40)
    latent = audioldm2.encode_mel(mel)
    assert latent.shape == (2, 8, 10, 16) == (2, *audioldm2.latent_shape(40 * 160))
    posterior = audioldm2.vae.encode(mel.transpose(1, 2)[:, None]).latent_dist
    torch.testing.assert_close(latent, 0.4 * posterior.mean)
    assert audioldm2.decode_mel(latent).shape == mel.shape
    torch.testing.assert_close(
        audioldm2.decode_mel(latent)[:, 3, 7], audioldm2.vae.decode(latent / 0.4).sample[:, 0, 7, 3]
    )
    assert audioldm2.encode(torch.randn(3, 6400)).shape == (3, 8, 10, 16)
    assert audioldm2.decode(latent).shape == (2, 6400)
    latent.requires_grad_()
    audioldm2.decode(latent).sum().backward()
    assert latent.grad is not None and latent.grad.abs().sum() > 0


def test_music2latent_shapes_and_repeatability(weights):
    codec = load_codec("music2latent", weights)
    assert codec.latent_shape(524288) == (64, 127)
    wave = 0.1 * torch.randn(2, 1536 + 2 * 4096 + 100, generator=torch.Generator().manual_seed(0))
    latent = codec.encode(wave)
    assert latent.shape == (2, 64, 2) == (2, *codec.latent_shape(wave.shape[-1]))
    rebuilt = codec.decode(latent)
    assert rebuilt.shape == (2, 1536 + 2 * 4096)
    torch.testing.assert_close(codec.decode(latent[1]), rebuilt[1], atol=1e-4, rtol=1e-3)
    assert (rebuilt[0] - rebuilt[1]).abs().max() > 1e-3, "the stand-in's output depends on its latent"
    with pytest.raises(ValueError, match="5000 samples are too short for music2latent; it needs 5632"):
        codec.encode(wave[:, :5000])


def test_a_damaged_weights_file_is_named(tmp_path):
    root = write_encodec(tmp_path)
    path = next((root / "encodec").glob("*.th"))
    raw = path.read_bytes()
    path.write_bytes(raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:])
    with pytest.raises(
        UserError, match=f"{path.name} does not hold the bytes that were fetched; type python data_prep/fetch"
    ):
        load_codec("encodec", root)
    path.write_bytes(raw[:-1])
    with pytest.raises(UserError, match="bytes long, not"):
        load_codec("encodec", root)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_codec("encodec", root)
    (root / "encodec/manifest.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_codec("encodec", root)


def test_weights_of_another_architecture_are_listed(tmp_path):
    root = write_encodec(tmp_path)
    path = next((root / "encodec").glob("*.th"))
    state = torch.load(path, weights_only=True)
    first, second, *_ = state
    state["extra.weight"] = state.pop(first)
    state[second] = state[second][..., :1].repeat(2, *[1] * (state[second].ndim - 1))
    torch.save(state, path)
    with pytest.raises(UserError, match="its name says"):
        load_codec("encodec", declare(root, "encodec"))
    path.rename(path.with_name("encodec_24khz-.th"))
    with pytest.raises(UserError) as error:
        load_codec("encodec", declare(root, "encodec"))
    assert f"another architecture: missing {first}, unknown extra.weight, reshaped {second}" in str(error.value)


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    (tmp_path / "music2latent").mkdir()
    torch.save({"gen_state_dict": Evil()}, tmp_path / "music2latent/m.pt")
    with pytest.raises(UserError, match=r"m\.pt is no file of plain tensors"):
        load_codec("music2latent", declare(tmp_path, "music2latent"))
    assert not (tmp_path / "ran").exists()
    torch.save({"weights": torch.zeros(1)}, tmp_path / "music2latent/m.pt")
    with pytest.raises(UserError, match="holds no 'gen_state_dict'"):
        load_codec("music2latent", declare(tmp_path, "music2latent"))


def test_audioldm2_refuses_half_a_vae(tmp_path):
    from safetensors.torch import load_file, save_file

    root = write_audioldm2(tmp_path)
    path = root / "audioldm2/vae/diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("quant_conv")}, path)
    with pytest.raises(UserError, match=r"another architecture: missing quant_conv\.bias, missing quant_conv\.weight"):
        load_codec("audioldm2", declare(root, "audioldm2"))
    (root / "audioldm2/vae/config.json").unlink()
    with pytest.raises(UserError, match="cannot be loaded as AutoencoderKL"):
        load_codec("audioldm2", declare(root, "audioldm2"))


def test_weights_are_found_by_the_environment(weights, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURMPHONY_WEIGHTS", str(weights))
    assert weights_identity("encodec") == weights_identity("encodec", weights)
    manifest = json.loads((weights / "encodec/manifest.json").read_text())
    (tmp_path / "encodec").mkdir()
    manifest["files"][0]["sha256"] = "0" * 64
    (tmp_path / "encodec/manifest.json").write_text(json.dumps(manifest))
    assert weights_identity("encodec") != weights_identity("encodec", tmp_path)
    with pytest.raises(
        UserError, match=f"{tmp_path} .*does not hold them: .*fetch_weights.py audioldm2 --out {tmp_path}"
    ):
        load_codec("audioldm2", tmp_path)


@pytest.mark.soak
def test_shapes_at_full_size(weights, encodec, tmp_path):
    assert encodec.encode(torch.zeros(1, 384000)).shape == (1, 128, 1200)
    stems = 0.1 * torch.randn(1, 1, 524288)
    assert load_codec("music2latent", weights).encode(stems).shape == (1, 1, 64, 127)
    codec = load_codec("audioldm2", write_audioldm2(tmp_path, (128, 256, 512), vocoder=1024))
    assert round(sum(p.numel() for p in codec.vae.parameters()), -5) == 55_400_000
    assert codec.encode_mel(torch.zeros(1, 64, 400)).shape == (1, 8, 100, 16)
