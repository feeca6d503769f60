"""Backbones, decoder, localizer: shapes, strides, weights, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wilson.errors import UserError
from wilson.models import DeepLabV3Head, build_backbone, build_segmenter
from wilson.models.backbone import normalization


@pytest.mark.parametrize("stride", [8, 16])
def test_timm_backbone_keeps_its_stride(stride):
    backbone = build_backbone("resnet18", stride)
    assert backbone.stride == stride
    assert backbone(torch.zeros(1, 3, 64, 96)).shape == (1, backbone.channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize(("stride", "expected"), [(16, [1, 1, 1, 2]), (8, [1, 1, 2, 4])])
@pytest.mark.parametrize("name", ["resnet18", "resnet26"])
def test_residual_stages_are_dilated_from_their_first_block(name, stride, expected):
    body = build_backbone(name, stride).body
    for number, dilation in enumerate(expected, 1):
        stage = getattr(body, f"layer{number}")
        kernels = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert {(m.dilation, m.padding) for m in kernels} == {((dilation, dilation),) * 2}


def test_activation_of_a_timm_backbone():
    def activations(backbone):
        return {type(m) for m in backbone.modules() if isinstance(m, (nn.ReLU, nn.LeakyReLU))}

    assert activations(build_backbone("resnet18", 16)) == {nn.ReLU}
    leaky = build_backbone("resnet18", 16, activation="leaky_relu")
    assert activations(leaky) == {nn.LeakyReLU}
    assert {m.negative_slope for m in leaky.modules() if isinstance(m, nn.LeakyReLU)} == {0.01}


def test_wide_resnet_has_the_shapes_of_its_table():
    """Numbers of the table in its docstring, without computing."""
    with torch.device("meta"):
        model = build_backbone("wide_resnet38_a2", 8)
        x, shapes = torch.zeros(2, 3, 96, 128), {}
        for name, part in model.named_children():
            x = part(x)
            shapes[name] = tuple(x.shape)
    assert shapes == {
        "mod1": (2, 64, 96, 128),
        "pool2": (2, 64, 48, 64),
        "mod2": (2, 128, 48, 64),
        "pool3": (2, 128, 24, 32),
        "mod3": (2, 256, 24, 32),
        "mod4": (2, 512, 12, 16),
        "mod5": (2, 1024, 12, 16),
        "mod6": (2, 2048, 12, 16),
        "mod7": (2, 4096, 12, 16),
        "bn_out": (2, 4096, 12, 16),
    }
    assert [len(getattr(model, f"mod{i}")) for i in range(2, 8)] == [3, 3, 6, 3, 1, 1]  # 38 layers with the classifier
    drop = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout2d)}
    assert drop == {"mod6.block1.convs.dropout": 0.3, "mod7.block1.convs.dropout": 0.5}
    assert model.channels == 4096 and normalization("wide_resnet38_a2")[0] == pytest.approx((0.485, 0.456, 0.406))


def test_weights_from_a_local_file(tmp_path):
    import timm

    torch.manual_seed(1)
    full = timm.create_model("resnet18")
    save_file(full.state_dict(), tmp_path / "w.safetensors")
    torch.save(full.state_dict(), tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        backbone = build_backbone("resnet18", 16, str(tmp_path / file))
        assert torch.equal(
            backbone.get_parameter("body.layer4.1.conv2.weight"), full.get_parameter("layer4.1.conv2.weight")
        )


def test_weights_that_do_not_fit_are_refused(tmp_path):
    state = build_backbone("resnet18", 16).body.state_dict()
    removed = sorted(state)[3]
    del state[removed]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=removed):
        build_backbone("resnet18", 16, str(tmp_path / "w.safetensors"))
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a readable state dict"):
        build_backbone("resnet18", 16, str(tmp_path / "broken.pth"))
    with pytest.raises(UserError, match="no such file"):
        build_backbone("resnet18", 16, str(tmp_path / "missing.pth"))


@pytest.mark.parametrize(
    ("name", "stride", "weights", "text"),
    [
        ("resnet0815", 16, "none", "knows no such model"),
        ("resnet18", 5, "none", "stride"),
        ("vit_tiny_patch16_224", 8, "none", "stride 16"),
        ("small_resnet", 16, "none", "stride 4"),
        ("small_resnet", 4, "hub", "no pretrained weights"),
        ("wide_resnet38_a2", 16, "none", "stride 8"),
        ("wide_resnet38_a2", 8, "hub", "no pretrained weights"),
    ],
)
def test_unknown_backbones_and_strides_are_refused(name, stride, weights, text):
    with pytest.raises(UserError, match=text):
        build_backbone(name, stride, weights)


def test_normalization_is_the_backbones_own():
    assert normalization("resnet101")[0] == pytest.approx((0.485, 0.456, 0.406))
    assert normalization("tf_efficientnet_lite0")[1] == (0.5, 0.5, 0.5)


def test_head_starts_from_xaviers_normal_distribution():
    torch.manual_seed(0)
    head = DeepLabV3Head(256, 256, (6, 12, 18), window=32)
    convolutions = {name: m for name, m in head.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convolutions) == 7
    for conv in convolutions.values():
        fans = (conv.in_channels + conv.out_channels) * conv.kernel_size[0] * conv.kernel_size[1]
        expected = (2 / (1 + 0.01**2)) ** 0.5 * (2 / fans) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert conv.weight.abs().max() > 4 * expected  # not uniform


def test_head_pools_whole_crops_in_training_and_a_window_in_testing():
    torch.manual_seed(0)
    head = DeepLabV3Head(4, 8, (1, 2, 3), window=6).eval()
    crop = torch.randn(1, 4, 6, 6)
    whole = crop.mean((2, 3), keepdim=True)
    assert torch.equal(head._pool(crop), whole)
    large = torch.randn(1, 4, 9, 13)
    pooled = head._pool(large)
    assert pooled.shape == large.shape
    # the centre of the window that starts at (1, 2)
    torch.testing.assert_close(pooled[..., 1 + 2, 2 + 2], large[..., 1:7, 2:8].mean((2, 3)))
    torch.testing.assert_close(pooled[..., 0, 0], large[..., :6, :6].mean((2, 3)))  # replicate padding
    assert torch.equal(head.train()._pool(large), large.mean((2, 3), keepdim=True))


def test_segmenter_grows_by_a_classifier_per_step():
    model = build_segmenter("small_resnet", 4, "none", 16, [4, 2, 1], crop=32, dilations=(1, 2, 3))
    logits, features = model(torch.zeros(2, 3, 32, 48))
    assert model.classes == 7 and logits.shape == (2, 7, 8, 12) and features.shape == (2, 64, 8, 12)


def test_ready_for_sync_batch_norm():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(
        build_segmenter("resnet18", 16, "none", 16, [3], crop=32, dilations=(1, 2, 3))
    )
    assert not any(type(m) is nn.BatchNorm2d for m in model.modules())
    assert any(isinstance(m, nn.SyncBatchNorm) for m in model.head.modules())
