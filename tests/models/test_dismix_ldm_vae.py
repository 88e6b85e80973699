"""The frozen VAE inside the LDM case. Its weights here are random numbers, a stand-in: no pretrained ones lie at hand."""

import pytest
import torch

from models.codecs.weights import find_weights
from models.dismix.ldm.rendering import codec_of, to_mel
from pipeline.ema import Ema
from pipeline.errors import UserError
from tests.models.helpers import build, info, load
from tests.models.stand_in_weights import write_audioldm2
from tests.models.test_dismix_ldm import SMALL

CONFIG = ("dismix_ldm_demo", *SMALL, "data.codec=audioldm2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = write_audioldm2(tmp_path_factory.mktemp("weights"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURMPHONY_WEIGHTS", str(root))
        yield find_weights("audioldm2", root).identity


def with_weights(identity, seed=0):
    """A module for latents that were made with weights of this identity."""
    config = load(*CONFIG)
    data = type(build(config)).typical_data(config)
    data["latent"]["weights_hash"] = identity
    torch.manual_seed(seed)
    return type(build(load("dismix_ldm_demo", *SMALL)))(config, data)


@pytest.fixture(scope="module")
def module(weights):
    return with_weights(weights)


def test_the_pretrained_pair_is_frozen_and_the_rest_learns(module):
    module.train()
    module.training_step(module.example_batch(4), 1)["loss"].backward()
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith(tuple(f"model.{part}." for part in module.model.frozen)) for n in frozen)
    assert all(p.grad is None for p in module.parameters() if not p.requires_grad)
    assert not [n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not module.model.renderer.vae_decoder.training and module.model.renderer.training


def test_a_checkpoint_holds_what_was_trained_and_loads_strictly(module, weights):
    state = module.state_dict()
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert state.keys() == trained and trained == Ema(dict(module.averaged_parameters()), 0.9).state_dict().keys()
    other = with_weights(weights, seed=1)
    other.load_state_dict(state)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())
    with pytest.raises(RuntimeError, match="elbo"):
        other.load_state_dict({name: value for name, value in state.items() if "elbo" not in name})


def test_the_mixture_embedding_sees_the_whole_posterior_of_the_codec(module):
    codec, mel = codec_of(module), torch.randn(2, 64, 16)
    posterior = codec.vae.encode(mel.transpose(-1, -2)[:, None]).latent_dist.parameters
    heard = module.model.mixture_encoder(module.mixture_input(mel, mel), module.model.codec["quantise"])
    torch.testing.assert_close(heard, module.model.mixture_encoder.project(posterior), rtol=1e-4, atol=1e-5)


def test_latents_decode_as_the_codec_decodes_them(module):
    """With the scaling factor of the weights' own config, and post_quant_conv."""
    codec, latents = codec_of(module), torch.randn(1, 5, 8, 4, 16)
    assert module.model.scaling == codec.vae.config.scaling_factor == 0.4
    mels = to_mel(module, codec, latents)
    expected = codec.decode_mel(module.members_scale(5).invert(latents))
    torch.testing.assert_close(mels, expected.clamp_min(mels.min().item()), rtol=1e-4, atol=1e-4)
    assert codec.vocode(mels[0, 0]).shape == (16 * 160,)


def test_other_weights_than_the_latents_are_told(weights):
    with pytest.raises(UserError, match="other weights of audioldm2"):
        with_weights("0" * 64)


def test_missing_weights_are_told_with_the_command(monkeypatch):
    monkeypatch.delenv("SLURMPHONY_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"fetch_weights\.py audioldm2"):
        with_weights("0" * 64)
    assert info("dismix")["latent"]["weights_hash"] is None, "looking at the model needs no weights"
