"""Generators of other packages, with small random weights, and the layered generator."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from terse_aug.discovery import DiscoverySettings, LayeredGenerator
from terse_aug.discovery.weights_file import save_weights_file
from terse_aug.generators import FeatureGenerator, SampleKey, Truncation, load_generator
from terse_aug.generators.biggan import statistics_argument
from terse_aug.generators.layered import LayeredFeatures
from terse_aug.generators.protocol import render_sample, sample_latent


def sides(generator: FeatureGenerator, key: SampleKey) -> list[int]:
    return [feature.shape[2] for feature in render_sample(generator, sample_latent(generator, key), key).features]


def check_renders(generator: FeatureGenerator, again: FeatureGenerator, truncation: Truncation) -> None:
    """One sample is the same on each load, another one differs."""
    images = []
    for own, number in ((generator, 0), (generator, 1), (again, 0)):
        key = SampleKey(0, number, 0, truncation)
        images.append(render_sample(own, sample_latent(own, key), key).image)
    assert generator.fingerprint == again.fingerprint
    assert (images[0] == images[2]).all()
    assert (images[0] != images[1]).any()


def test_the_layered_generator_shows_features_of_colors_and_no_others(tmp_path: Path) -> None:
    settings = DiscoverySettings(size=32, width=16, latent=8)
    torch.manual_seed(0)
    model = LayeredGenerator(settings)
    run = {**settings.plain(), "seed": 3, "images": "a digest"}
    state = {"modules": {"average": model.state_dict()}}
    save_weights_file(tmp_path / "checkpoint.pt", "terse-aug cutter checkpoint", 1, {"run": run, "state": state})
    generator = load_generator(f"layered:{tmp_path}", "cpu")
    assert isinstance(generator, LayeredFeatures)
    check_renders(generator, load_generator(f"layered:{tmp_path / 'checkpoint.pt'}", "cpu"), Truncation())
    key = SampleKey(0, 2)
    latent = generator.latent(key)
    assert generator.masks(latent[None]).shape == (1, 32, 32)
    before = generator.render(latent[None], torch.tensor([0]), key.truncation).features
    # Three upsampling blocks of the background, and the residual blocks of background and of the foreground's colors.
    residual = [32] * 2 * settings.residual_blocks
    assert sorted(feature.shape[2] for feature in before) == [8, 16, 32, *residual]
    assert not [name for name in generator._recorded if name.startswith("shape.")]
    with torch.no_grad():
        for parameter in generator._model.shape.mask.parameters():
            parameter.add_(1)
    after = generator.render(latent[None], torch.tensor([0]), key.truncation).features
    assert all(map(torch.equal, before, after))  # nothing of the mask is among them
    save_weights_file(tmp_path / "checkpoint.pt", "terse-aug cutter", 1, {})
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        load_generator(f"layered:{tmp_path}", "cpu")


@pytest.fixture
def biggan(tmp_path: Path) -> Path:
    package = pytest.importorskip("pytorch_pretrained_biggan")
    layers = [(True, 16, 8), (True, 8, 4), (False, 4, 2), (False, 2, 1)]
    own = {"output_dim": 16, "z_dim": 16, "class_embed_dim": 16, "channel_width": 4, "num_classes": 3}
    config = package.BigGANConfig(layers=layers, attention_layer_position=2, **own)
    torch.manual_seed(0)
    model = package.BigGAN(config)
    for name, buffer in model.named_buffers():  # statistics that depend on the truncation
        if name.endswith("running_vars"):
            buffer.copy_(0.01 + 0.01 * torch.rand_like(buffer))
    for name, parameter in model.named_parameters():
        if name.startswith("generator.bn."):
            torch.nn.init.ones_(parameter)
    with torch.no_grad():
        for _ in range(15):  # the power iterations of spectral norms, which a trained model has behind it
            model(torch.randn(1, 16), torch.eye(3)[:1], 1.0)
    (tmp_path / "config.json").write_text(config.to_json_string())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    return tmp_path


def test_biggan_of_a_local_folder(biggan: Path) -> None:
    (biggan / "class_names.txt").write_text("tench\ngoldfish\nshark\n")
    generator = load_generator(f"biggan:{biggan}", "cpu")
    assert list(generator.class_names) == ["tench", "goldfish", "shark"]
    check_renders(generator, load_generator(f"biggan:{biggan}", "cpu"), Truncation(0.5, "truncated-normal"))
    assert sides(generator, SampleKey(1, 0)) == [8, 16]
    key = SampleKey(1, 0)
    latent = sample_latent(generator, key)[None]
    rendered = {}
    for method in ("scaled", "truncated-normal"):
        rendered[method] = generator.render(latent, torch.tensor([1]), Truncation(0.5, method)).images
    whole = generator.render(latent, torch.tensor([1]), Truncation(1.0, "truncated-normal")).images
    assert torch.equal(rendered["scaled"], whole)  # the statistics of whole noise
    assert not torch.equal(rendered["truncated-normal"], whole)


@pytest.mark.parametrize("count", [11, 51, 101])
def test_biggan_takes_the_statistics_of_its_truncation(count: int) -> None:
    model = pytest.importorskip("pytorch_pretrained_biggan.model")
    norm = model.BigGANBatchNorm(1, n_stats=count, eps=1e-12, conditional=False).requires_grad_(False)
    norm.running_means[:, 0], norm.weight[:], norm.bias[:] = torch.arange(float(count)), 1, 0
    recorded = range(1, count)
    for place in (*recorded, 1e-9, 0.25, 6.75, 7.25, count - 1.1):
        found = -norm(torch.zeros(1, 1, 1, 1), statistics_argument(place / (count - 1), count)).item()
        assert found == pytest.approx(place, abs=1e-4), place
    assert statistics_argument(1.0, count) == 1.0


def test_biggan_renders_with_the_statistics_of_its_truncation(biggan: Path) -> None:
    generator, key = load_generator(f"biggan:{biggan}", "cpu"), SampleKey(1, 0)
    latent = sample_latent(generator, key)[None]

    def rendered(value: float) -> torch.Tensor:
        return generator.render(latent, torch.tensor([1]), Truncation(value, "truncated-normal")).images

    for value in (0.14, 0.58):  # the package's own choice is the next one
        assert torch.allclose(rendered(value), rendered(value + 1e-5), atol=1e-3)
        assert not torch.allclose(rendered(value), rendered(value + 0.02), atol=1e-3)


def test_biggan_refuses_what_is_missing_of_other_settings_or_no_weights(biggan: Path) -> None:
    weights, config = biggan / "pytorch_model.bin", biggan / "config.json"
    state = torch.load(weights, weights_only=True)

    def refused(message: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_generator(f"biggan:{biggan}", "cpu")

    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"channel_width": 8}))
    refused(r"pytorch_model\.bin: weights of another config")
    config.write_text("{}}")
    refused(r"config\.json: no config of BigGAN")
    config.write_text(json.dumps(content))
    torch.save({name: value for name, value in state.items() if "conv_to_rgb" not in name}, weights)
    refused("weights are missing, such as generator.conv_to_rgb")
    torch.save({"model": Path()}, weights)
    refused(r"pytorch_model\.bin: expected a file of weights only")
    weights.unlink()
    refused(r"no file .*pytorch_model\.bin")
    torch.save(state, weights)
    (biggan / "class_names.txt").write_text("tench\n")
    refused(r"class_names\.txt: expected 3 names")


@pytest.fixture
def vqgan(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers imports what it does not use
        package = pytest.importorskip("diffusers")
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        shape = {"block_out_channels": (8, 16), "latent_channels": 4, "num_vq_embeddings": 8, "norm_num_groups": 4}
        package.VQModel(**blocks, **shape).save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "codes.npz", codes=rng.integers(0, 8, (5, 8, 8)), labels=np.array([0, 1, 0, 0, 1]))
    return tmp_path


def test_vqgan_of_a_local_folder(vqgan: Path) -> None:
    generator = load_generator(f"vqgan:{vqgan}", "cpu")
    assert list(generator.class_names) == ["class 0", "class 1"]
    whole = Truncation(1.0)
    check_renders(generator, load_generator(f"vqgan:{vqgan}", "cpu"), whole)
    assert sides(generator, SampleKey(0, 0, 0, whole)) == [8, 8, 16, 16]
    codes = np.load(vqgan / "codes.npz")["codes"]
    drawn = [generator.latent(SampleKey(1, number, 4, whole)).numpy() for number in range(2)]
    assert sorted(own.tobytes() for own in drawn) == sorted(own.tobytes() for own in codes[[1, 4]])
    with pytest.raises(ValueError, match="2 code maps of class 1, so there is no number 2"):
        generator.latent(SampleKey(1, 2, 0, whole))
    with pytest.raises(ValueError, match="cannot be truncated"):
        generator.latent(SampleKey(1, 0, 0, Truncation(0.9)))


def test_vqgan_refuses_missing_weights(vqgan: Path) -> None:
    package = pytest.importorskip("safetensors.torch")
    path = vqgan / "diffusion_pytorch_model.safetensors"
    state = package.load_file(path)
    package.save_file({name: own for name, own in state.items() if "decoder.conv_out" not in name}, path)
    with pytest.raises(ValueError, match=r"2 weights are missing, such as decoder\.conv_out\.bias"):
        load_generator(f"vqgan:{vqgan}", "cpu")


def test_vqgan_refuses_codes_that_are_missing_or_not_in_the_codebook(vqgan: Path) -> None:
    path = vqgan / "codes.npz"
    wrong = [
        ({"codes": np.full((1, 8, 8), 8), "labels": np.array([0])}, "expected codes from 0 to 7"),
        ({"codes": np.zeros((1, 8, 8)), "labels": np.array([0])}, "expected whole numbers"),
        ({"codes": np.zeros((1, 8, 8), int)}, "expected arrays codes and labels"),
        ({"codes": np.array([[["a", None]]], object), "labels": np.array([0])}, "expected arrays codes and labels"),
    ]
    for arrays, message in wrong:
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {message}"):
            load_generator(f"vqgan:{vqgan}", "cpu")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"codes\.npz; put the codes there"):
        load_generator(f"vqgan:{vqgan}", "cpu")
