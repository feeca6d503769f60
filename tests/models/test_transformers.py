"""Vision transformers as backbones: maps, position embeddings, stages, weights, what is refused; and a run with one."""

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import wilson
from tests.support.tiny_runs import QUICK, checkpoint_of
from tests.support.tiny_timm import TINY_VIT
from wilson.checkpoint import Checkpoint
from wilson.cli import main
from wilson.errors import UserError
from wilson.evaluation.evaluate import evaluate_checkpoint
from wilson.methods import METHODS
from wilson.methods.plop import outputs
from wilson.models import build_backbone, build_segmenter
from wilson.models.backbone import normalization
from wilson.models.decoder import usual_dilations
from wilson.runs.run import run

PLAIN = [
    ("vit_tiny_patch16_224", 16),
    ("deit_tiny_distilled_patch16_224", 16),  # two tokens in front
    ("vit_small_patch14_reg4_dinov2", 14),  # a class token and four registers
    ("eva02_tiny_patch14_224", 14),  # rotary embeddings, no norm at the end
    (TINY_VIT, 8),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "stride"), PLAIN)
def test_a_plain_transformer_says_what_timm_says_at_this_size(name, stride):
    """timm resamples the embeddings once, for a model of this very size; ours are resampled for each image."""
    backbone: Any = build_backbone(name, stride).eval()
    grid = backbone.body.pos_embed.shape
    other: Any = timm.create_model(name, num_classes=0).eval()
    other.load_state_dict(backbone.body.state_dict(), strict=False)
    other.set_input_size(img_size=(4 * stride, 7 * stride))
    image = torch.randn(2, 3, 4 * stride, 7 * stride)
    tokens = other.forward_features(image)[:, other.num_prefix_tokens :]
    if not backbone.normalized:
        tokens = F.layer_norm(tokens, tokens.shape[2:])
    expected = tokens.transpose(1, 2).unflatten(2, (4, 7))
    torch.testing.assert_close(backbone(image), expected, rtol=1e-4, atol=1e-4)
    assert backbone.body.pos_embed.shape == grid != other.pos_embed.shape
    assert backbone.channels == expected.shape[1] and backbone.stride == stride


@torch.no_grad()
def test_an_image_is_resized_to_whole_patches_and_gives_a_map_of_all_of_it():
    backbone: Any = build_backbone(TINY_VIT, 8).eval()
    image = torch.randn(1, 3, 30, 41)
    whole = F.interpolate(image, size=(32, 48), mode="bilinear")
    assert torch.equal(backbone(image), backbone(whole)) and backbone(image).shape[2:] == (4, 6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0", "mit_b0"])
def test_stages_are_fused_at_the_stride(name):
    if name == "mit_b0":
        pytest.importorskip("segmentation_models_pytorch")
    backbone: Any = build_backbone(name, 16).eval()
    image = torch.randn(2, 3, 64, 96)
    if name == "mit_b0":
        maps = backbone.body(image)[-2:]
    else:  # a model of timm for this very size
        options: dict[str, Any] = {"img_size": (64, 96), "always_partition": True} if name.startswith("swin") else {}
        other: Any = timm.create_model(name, num_classes=0, **options).eval()
        other.load_state_dict(backbone.body.state_dict(), strict=False)
        maps = other.forward_intermediates(image, 2, intermediates_only=True)
    fine, coarse = (F.layer_norm(m.permute(0, 2, 3, 1), m.shape[1:2]).permute(0, 3, 1, 2) for m in maps)
    assert fine.shape[2:] == (4, 6) and coarse.shape[2:] == (2, 3)
    expected = torch.cat([fine, F.interpolate(coarse, size=(4, 6), mode="bilinear")], 1)
    torch.testing.assert_close(backbone(image), expected, rtol=1e-4, atol=1e-4)
    assert backbone.channels == expected.shape[1] and backbone.stride == 16


@torch.no_grad()
def test_other_strides_of_a_model_with_stages():
    image = torch.zeros(1, 3, 64, 96)
    shapes = {stride: build_backbone("pvt_v2_b0", stride)(image).shape[1:] for stride in (4, 8, 32)}
    assert shapes == {4: (32 + 64 + 160 + 256, 16, 24), 8: (64 + 160 + 256, 8, 12), 32: (256, 2, 3)}
    assert build_backbone("convnext_atto", 16)(image).shape[2:] == (4, 6)  # dilated


@pytest.mark.parametrize(("name", "stride"), [(TINY_VIT, 8), ("eva02_tiny_patch14_224", 14), ("pvt_v2_b0", 16)])
def test_every_parameter_learns(name, stride):
    """Others would stop training in several processes."""
    backbone = build_backbone(name, stride).train()
    backbone(torch.randn(2, 3, 70, 50)).square().mul(
        torch.linspace(0, 1, backbone.channels)[:, None, None]
    ).sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("name", "stride", "shapes"),
    [
        (TINY_VIT, 8, [(24, 8, 8)] * 4),
        ("vit_tiny_patch16_224", 16, [(192, 4, 4)] * 4),
        ("pvt_v2_b0", 16, [(32, 16, 16), (64, 8, 8), (160, 4, 4), (256, 2, 2)]),
    ],
)
def test_stages_give_maps_of_their_own(name, stride, shapes):
    backbone = build_backbone(name, stride)
    with outputs(backbone.stages()) as found:
        features = backbone(torch.randn(2, 3, 64, 64))
    assert [tuple(each.shape[1:]) for each in found] == shapes
    assert len({each.abs().max().item() for each in found}) == 4  # sums are 0 after a layer norm
    if backbone.plain:
        assert torch.equal(features, found[-1])


@pytest.mark.parametrize(("method", "term"), [("ilt", "enc"), ("plop", "pod")])
def test_inner_distillation_reaches_the_first_layer(method, term):
    torch.manual_seed(0)
    old = build_segmenter(TINY_VIT, 8, "none", 8, [3], 32)
    model: Any = old.extended(2)
    trained = METHODS[method](model, old).train()
    batch = {"image": torch.randn(2, 3, 32, 32), "mask": torch.randint(3, 5, (2, 32, 32))}
    assert trained(batch, 0)[term].item() == pytest.approx(0, abs=1e-5) or method == "plop"  # of equal models
    first = model.backbone.body.blocks[0].attn.qkv.weight
    with torch.no_grad():
        first += 0.1 * torch.randn_like(first)
    trained(batch, 0)[term].backward()
    assert first.grad.any()


@pytest.mark.parametrize(("name", "stride"), [(TINY_VIT, 8), ("convnext_atto", 16), ("mit_b0", 16)])
def test_weights_from_a_file_in_the_librarys_names(tmp_path, name, stride):
    if name == "mit_b0":
        pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(1)
    if name == "mit_b0":
        from segmentation_models_pytorch.encoders import get_encoder

        other = get_encoder(name, weights=None)
    else:
        other = timm.create_model(name, num_classes=7)  # the classifier is left out
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    loaded = build_backbone(name, stride, str(tmp_path / "w.safetensors")).state_dict()
    theirs = {name.replace(".", "_"): value for name, value in other.state_dict().items()}
    ours = {name.removeprefix("body.").replace(".", "_"): value for name, value in loaded.items()}
    assert len(ours) > 20 and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    del theirs
    save_file({"other": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="do not fit the backbone"):
        build_backbone(name, stride, str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("name", "stride", "activation", "text"),
    [
        ("vit_small_patch14_dinov2", 16, "own", "has stride 14, got 16; set the stride"),
        ("pvt_v2_b0", 14, "own", "has strides 4, 8, 16, 32, got 14"),
        (TINY_VIT, 8, "leaky_relu", "activation"),
        ("beit_base_patch16_224", 16, "own", "does not take images of any size.*224"),
        ("hiera_tiny_224", 16, "own", "does not take images of any size"),
    ],
)
def test_what_cannot_be_had_is_said(name, stride, activation, text):
    with pytest.raises(UserError, match=text):
        build_backbone(name, stride, activation=activation)


def test_segformers_encoder_names_the_library_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.encoders", None)
    with pytest.raises(UserError, match="pip install segmentation-models-pytorch"):
        build_backbone("mit_b1", 16)
    assert normalization("mit_b1")[0] == pytest.approx((0.485, 0.456, 0.406))


def test_the_decoder_reaches_as_far_at_any_stride():
    assert [usual_dilations(stride) for stride in (8, 14, 16, 32)] == [
        (12, 24, 32), (7, 14, 21), (6, 12, 18), (3, 6, 9)
    ]  # fmt: skip
    assert build_segmenter(TINY_VIT, 8, "none", 8, [2], 36).head.window == 5  # the map of a crop, rounded up


VIT = replace(
    QUICK,
    data=replace(QUICK.data, crop=36),  # no multiple of a patch
    model=replace(QUICK.model, backbone=TINY_VIT, stride=8),
    base=replace(QUICK.base, optimizer="adamw", lr_encoder=1e-3, lr_head=1e-3),
    step=replace(QUICK.step, optimizer="adamw", lr_encoder=1e-3, lr_head=1e-3),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(VIT, tmp_path_factory.mktemp("vit") / "run")


def test_wilson_trains_one(trained):
    before, after = (Checkpoint(checkpoint_of(trained, step)).weights for step in (0, 1))
    for name in ("backbone.body.pos_embed", "backbone.body.reg_token", "backbone.body.blocks.3.mlp.fc2.weight"):
        assert not torch.equal(before[name], after[name]), name
    steps = json.loads((trained / "results.json").read_text())["steps"]
    assert [step["step"] for step in steps] == [0, 1]


def test_a_trained_one_is_evaluated_at_other_sizes(trained):
    path = checkpoint_of(trained, 1)
    centre, several = (evaluate_checkpoint(path, None, None, "cpu", None, scales=s) for s in ((1.0,), (0.7, 1.9)))
    assert centre["miou"]["all"] != several["miou"]["all"]
    model = Checkpoint(path).model()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 50, 200)).logits.shape[2:] == (7, 25)


def test_a_trained_one_is_exported(trained, tmp_path):
    """The export itself compares the file with the model at four sizes."""
    assert main(["export", str(checkpoint_of(trained, 1)), "--out", str(tmp_path / "vit.pt2")]) == 0
    from PIL import Image

    picture = Image.new("RGB", (90, 60), (200, 30, 60))
    assert (
        wilson.load(tmp_path / "vit.pt2", "cpu").predict(picture) == wilson.load(trained, "cpu").predict(picture)
    ).all()
