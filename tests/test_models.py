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


def test_weights_from_a_local_file(tmp_path):
    import timm

    torch.manual_seed(1)
    full = timm.create_model("resnet18")
    save_file(full.state_dict(), tmp_path / "w.safetensors")
    torch.save(full.state_dict(), tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        backbone = build_backbone("resnet18", 16, str(tmp_path / file))
        assert torch.equal(backbone.body.layer4[1].conv2.weight, full.layer4[1].conv2.weight)


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
        ("vit_tiny_patch16_224", 16, "none", "stride 16"),
        ("small_resnet", 16, "none", "stride 4"),
        ("small_resnet", 4, "hub", "no pretrained weights"),
    ],
)
def test_unknown_backbones_and_strides_are_refused(name, stride, weights, text):
    with pytest.raises(UserError, match=text):
        build_backbone(name, stride, weights)


def test_normalization_is_the_backbones_own():
    assert normalization("resnet101")[0] == pytest.approx((0.485, 0.456, 0.406))
    assert normalization("tf_efficientnet_lite0")[1] == (0.5, 0.5, 0.5)


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
