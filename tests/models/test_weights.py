"""Published weights: read in their layouts, translated exactly, and refused by name where they do not fit."""

import argparse
import json
import pickle
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from timm.models import build_model_with_cfg, register_model, resnet
from torch import nn

from tests.support.published_networks import Head, Network, ResNet, WideResNet, data_parallel, randomize
from wilson.checkpoint import Checkpoint
from wilson.cli import main
from wilson.errors import UserError
from wilson.models import build_backbone, build_segmenter
from wilson.models.weight_files import checksum
from wilson.models.wide_resnet import STAGES, Stage
from wilson.models.wide_resnet import WideResNet as OwnWideResNet
from wilson.weights import importing
from wilson.weights.importing import import_weights, read
from wilson.weights.layouts import backbone_names, segmenter_names, translate
from wilson.weights.published import PublishedFile

SMALL = "resnet_of_the_tests"


@register_model
def resnet_of_the_tests(**options):
    """timm's ResNet-26 at an eighth of its width: every kind of layer, few numbers."""
    options.pop("pretrained")
    options["channels"] = (8, 16, 32, 64)
    return build_model_with_cfg(
        resnet.ResNet, "resnet26", False, block=resnet.Bottleneck, layers=(2, 2, 2, 2), **options
    )


def published_resnet(stride=16):
    return randomize(ResNet((2, 2, 2, 2), stride, width=8))


@pytest.fixture(autouse=True)
def _small_backbone(monkeypatch):
    monkeypatch.setitem(importing.PUBLISHED, SMALL, (64, None, 16))


def save_imagenet(network, path, **extra):
    state = data_parallel(network)
    state["module.classifier.fc.weight"] = torch.randn(10, network.channels)
    state["module.classifier.fc.bias"] = torch.randn(10)
    torch.save({"epoch": 90, "state_dict": state, "best_prec1": 77.0, **extra}, path)
    return path


def save_step(network, path, **extra):
    values = {"epoch": 29, "model_state": data_parallel(network), "best_score": np.float64(0.7), **extra}
    torch.save(values, path)
    return path


def step_network(classes, stride=16, window=4):
    dilations = {16: (6, 12, 18), 8: (12, 24, 32)}[stride]
    body = ResNet((2, 2, 2, 2), stride, width=8)
    return randomize(Network(body, Head(body.channels, 256, dilations, window), classes))


def same_forward(ours, theirs, image):
    """In eval and in train mode, in float64: rounding aside, the very same function."""
    ours, theirs = deepcopy(ours).double(), deepcopy(theirs).double()  # training moves the statistics
    for mode in (False, True):
        actual: list[torch.Tensor] = []
        expected: list[torch.Tensor] = []
        for network, results in ((ours, actual), (theirs, expected)):
            torch.manual_seed(0)  # dropout
            results.append(network.train(mode)(image.double()))
        # the scales were rounded to float32
        torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-6 * expected[0].abs().max().item())


# ------------------------------------------------------------------------------------------------ ImageNet weights


@pytest.mark.parametrize("stride", [8, 16])
def test_imagenet_resnet_computes_the_same(tmp_path, capsys, stride):
    published = published_resnet(stride)
    file, out = save_imagenet(published, tmp_path / "resnet.pth.tar"), tmp_path / "resnet.safetensors"
    digest = import_weights(file, out, SMALL, stride=stride)
    printed = capsys.readouterr().out
    assert f"sha256 {digest}" in printed and "classifier.fc.weight" in printed
    backbone = build_backbone(SMALL, stride, str(out), "leaky_relu")
    same_forward(backbone, published, torch.randn(2, 3, 96, 128))


def test_imagenet_wide_resnet_computes_the_same(tmp_path):
    published = randomize(WideResNet(slimmer=16))
    slim = [Stage(s.blocks, tuple(w // 16 for w in s.widths), *s[2:]) for s in STAGES]
    ours = OwnWideResNet(slim, width=4)
    source = PublishedFile.read(save_imagenet(published, tmp_path / "wide.pth"))
    ours.load_state_dict(translate(source, ours, backbone_names(ours), "wide"), strict=False)
    image = torch.randn(2, 3, 48, 64)
    assert ours.eval()(image).shape == (2, ours.channels, 6, 8) == (2, 256, 6, 8)
    same_forward(ours, published, image)


def test_names_are_those_of_the_layouts():
    """Against names written out by hand, not by the same code twice."""
    keys = set(ResNet((3, 4, 23, 3), 16).state_dict())
    assert {
        "mod1.conv1.weight",
        "mod1.bn1.running_var",
        "mod4.block23.convs.bn3.bias",
        "mod2.block1.proj_bn.weight",
    } <= keys
    rename = backbone_names(build_backbone(SMALL, 16))
    assert rename("conv1") == "mod1.conv1" and rename("bn1") == "mod1.bn1"
    assert rename("layer1.0.conv1") == "mod2.block1.convs.conv1" and rename("layer4.1.bn3") == "mod5.block2.convs.bn3"
    assert rename("layer2.0.downsample.0") == "mod3.block1.proj_conv"
    assert rename("layer2.0.downsample.1") == "mod3.block1.proj_bn"
    model = build_segmenter(SMALL, 16, "none", 16, [3, 2], crop=64)
    rename = segmenter_names(model)
    assert rename("backbone.body.layer3.1.conv2") == "body.mod4.block2.convs.conv2"
    assert rename("classifiers.1") == "cls.1" and rename("head.map_convs.3") == "head.map_convs.3"


def test_activation_of_imported_weights_must_be_the_models(tmp_path):
    file, out = save_imagenet(published_resnet(), tmp_path / "w.pth"), tmp_path / "w.safetensors"
    import_weights(file, out, SMALL)
    with pytest.raises(UserError, match=r"--model\.activation leaky_relu"):
        build_backbone(SMALL, 16, str(out))
    with pytest.raises(UserError, match="wilson weights import"):
        build_backbone(SMALL, 16, str(file))
    with safe_open(out, framework="pt") as written:
        assert written.metadata() == {"backbone": SMALL, "activation": "leaky_relu"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "network"), [("resnet101", ResNet), ("wide_resnet38_a2", WideResNet)])
def test_full_size_networks(tmp_path, name, network):
    published = randomize(ResNet((3, 4, 23, 3), 16) if network is ResNet else WideResNet())
    file, out = save_imagenet(published, tmp_path / "w.pth"), tmp_path / "w.safetensors"
    assert main(["weights", "import", str(file), "--out", str(out), "--backbone", name]) == 0
    stride = importing.PUBLISHED[name][2]
    backbone = build_backbone(name, stride, str(out), "leaky_relu")
    image = torch.randn(1, 3, 64, 96)
    assert backbone.channels == published.channels == {"resnet101": 2048, "wide_resnet38_a2": 4096}[name]
    with torch.no_grad():
        actual, expected = backbone.eval()(image), published.eval()(image)
    assert actual.shape == (1, backbone.channels, 64 // stride, 96 // stride)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())  # float32, deep


# ------------------------------------------------------------------------------------------------ step checkpoints


@pytest.mark.parametrize("stride", [8, 16])
def test_step_checkpoint_computes_the_same(tmp_path, stride):
    """Crops, and images larger than the training crop, where the head pools in a sliding window."""
    window = 64 // stride
    published = step_network([16, 5], stride, window)
    file, out = save_step(published, tmp_path / "step.pth"), tmp_path / "imported" / "checkpoint.pt"
    import_weights(file, out, SMALL, task="15-5", stride=stride)
    saved = Checkpoint(out)
    assert (saved.step, saved.task.name, saved.config.model.activation) == (1, "15-5", "leaky_relu")

    class Logits(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model(image).logits

    for size in ((64, 64), (80, 112)):
        same_forward(Logits(saved.model()), published, torch.randn(2, 3, *size))


def test_localizer_and_optimizer_are_left_out(tmp_path, capsys):
    localizer = {"module.0.weight": torch.randn(4, 4, 3, 3), "module.4.bias": torch.randn(4)}
    file = save_step(step_network([16]), tmp_path / "s.pth", pseudolabeler=localizer, optimizer_state={"lr": 0.1})
    import_weights(file, tmp_path / "c.pt", SMALL, task="15-5")
    printed = capsys.readouterr().out
    assert "left out: epoch, best_score, pseudolabeler, optimizer_state" in printed
    assert f"wilson train --start {tmp_path / 'c.pt'} --step 1" in printed


def test_imported_checkpoint_is_evaluated_used_and_trained_on(tmp_path, capsys):
    """The whole way: evaluate, predict, and the next step from it."""
    root = tmp_path / "data"
    size = ["--train-images", "42", "--val-images", "4", "--size", "64"]
    assert main(["data", "export", "--out", str(root), *size]) == 0
    file, start = save_step(step_network([6]), tmp_path / "step.pth"), tmp_path / "checkpoint.pt"
    import_weights(file, start, SMALL, task="5-3", root=str(root))
    assert main(["evaluate", str(start)]) == 0
    image = next((root / "JPEGImages").iterdir())
    assert main(["predict", str(image), "--checkpoint", str(start), "--out", str(tmp_path / "masks")]) == 0
    options = ["--model.backbone", SMALL, "--model.activation", "leaky_relu", "--task", "5-3", "--data.root", str(root)]
    options += ["--data.train-split", "train", "--data.crop", "64", "--data.workers", "0", "--protocol", "disjoint"]
    options += ["--step.epochs", "1", "--step.warmup", "0", "--step.batch", "8"]
    train = ["train", "--start", str(start), "--step", "1", *options, "--out", str(tmp_path / "run")]
    assert main(train) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["method"] == "wilson" and [step["step"] for step in results["steps"]] == [1]
    before, after = read(start), read(tmp_path / "run" / "step-1" / "checkpoint.pt")
    assert set(before) < set(after)


# ------------------------------------------------------------------------------------------------ refusals


def refusal(file, out, **options):
    with pytest.raises(UserError) as caught:
        import_weights(file, out, SMALL, **options)
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*"))
    return str(caught.value)


def test_every_key_that_does_not_fit_is_named(tmp_path, capsys):
    network = published_resnet()
    state: dict[str, Any] = data_parallel(network)
    for key in ("module.mod2.block1.convs.bn1.weight", "module.mod5.block2.convs.conv3.weight"):
        del state[key]
    state["module.mod6.weight"], state["module.extra"] = torch.zeros(2), 3
    state["module.mod1.conv1.weight"] = torch.zeros(64, 3, 3, 3)
    state["module.mod3.block1.proj_bn.bias"] = torch.zeros(64, dtype=torch.int64)
    state["module.mod3.block1.proj_bn.weight"] = [1.0]
    file, out = tmp_path / "w.pth", tmp_path / "w.safetensors"
    torch.save({"state_dict": state}, file)
    summary, *lines = refusal(file, out).splitlines()
    assert "2 tensors are missing, 2 unexpected, 3 misshapen" in summary
    assert sorted(lines) == [
        "misshapen   mod1.conv1.weight: (64, 3, 3, 3), expected (64, 3, 7, 7)",
        "misshapen   mod3.block1.proj_bn.bias: (64,) torch.int64, expected (64,)",
        "misshapen   mod3.block1.proj_bn.weight: a list, expected (64,)",
        "missing     mod2.block1.convs.bn1.weight",
        "missing     mod5.block2.convs.conv3.weight",
        "unexpected  extra",
        "unexpected  mod6.weight",
    ]
    assert main(["weights", "import", str(file), "--out", str(out), "--backbone", "wide_resnet38_a2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"wilson: weights {file} do not fit wide_resnet38_a2") and "bn_out.weight" in error


def test_plain_batch_norm_is_not_taken_for_in_place_abn(tmp_path):
    """There a negative scale is meant; |weight| would be wrong in silence."""
    state = data_parallel(published_resnet())
    state["module.mod1.bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    text = refusal(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert "unexpected  mod1.bn1.num_batches_tracked" in text and "plain batch-norm" in text


def test_classifiers_must_be_those_of_the_task(tmp_path):
    file, out = save_step(step_network([16, 5]), tmp_path / "s.pth"), tmp_path / "c.pt"
    assert "misshapen   cls.0.weight: (16, 256, 1, 1), expected (11, 256, 1, 1)" in refusal(file, out, task="10-10")
    assert "classifiers of 2 steps, task offline has 1" in refusal(file, out, task="offline")
    assert "as in --task 15-5" in refusal(file, out)
    assert "no such folder" in refusal(file, out, task="15-5", root=str(tmp_path / "nowhere"))


def test_outputs_that_do_not_suit_are_refused(tmp_path):
    file = save_imagenet(published_resnet(), tmp_path / "w.pth")
    assert "become a .safetensors file" in refusal(file, tmp_path / "w.pt")
    step = save_step(step_network([16]), tmp_path / "s.pth")
    assert "become a .pt file" in refusal(step, tmp_path / "s.safetensors", task="15-5")
    (tmp_path / "there.safetensors").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        import_weights(file, tmp_path / "there.safetensors", SMALL)
    assert (tmp_path / "there.safetensors").read_text() == "mine"


@pytest.mark.parametrize("values", [{"state_dict": {}}, [torch.ones(2)], {"epoch": 3}, torch.ones(2)])
def test_other_contents_are_refused(tmp_path, values):
    torch.save(values, tmp_path / "w.pth")
    assert "expected a dictionary with state_dict or model_state" in refusal(tmp_path / "w.pth", tmp_path / "w.pt")


def test_broken_files_are_refused(tmp_path):
    file = save_imagenet(published_resnet(), tmp_path / "w.pth")
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"hello", b""):
        file.write_bytes(broken)
        assert "not a readable checkpoint" in refusal(file, tmp_path / "w.safetensors")
    assert "no such file" in refusal(tmp_path / "missing.pth", tmp_path / "w.safetensors")


# ------------------------------------------------------------------------------------------------ nothing is executed


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    file, trace = tmp_path / "w.pth", tmp_path / "trace"
    torch.save({"state_dict": {"a": torch.ones(2)}, "evil": Evil(trace)}, file, _use_new_zipfile_serialization=zipped)
    text = refusal(file, tmp_path / "w.safetensors")
    assert "weights_only" not in text and ".open" in text and "nothing was run" in text
    file.write_bytes(pickle.dumps(Evil(trace), protocol=2))
    refusal(file, tmp_path / "w.safetensors")
    assert not trace.exists()


def test_the_advice_of_the_refusal_works(tmp_path):
    """A namespace of options beside the tensors: a file with the tensors alone is imported."""
    file, new, out = tmp_path / "w.pth", tmp_path / "new.pth", tmp_path / "w.safetensors"
    save_imagenet(published_resnet(), file, options=argparse.Namespace(lr=0.1))
    text = refusal(file, out)
    assert "argparse.Namespace" in text and "save its tensors alone" in text and "weights_only" not in text
    torch.save(torch.load(file, weights_only=False)["state_dict"], new)
    import_weights(new, out, SMALL)


def test_numbers_of_numpy_and_legacy_files_are_read(tmp_path):
    """Best scores are NumPy numbers in the published files, and older files are no zip archives."""
    state = data_parallel(published_resnet())
    for kind in (np.float64, np.float32, np.int64, np.bool_):
        values = {"state_dict": state, "best": kind(1)}
        torch.save(values, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
        data = (tmp_path / "w.pth").read_bytes()
        for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
            renamed = data.replace(b"numpy._core.multiarray", module).replace(b"numpy.core.multiarray", module)
            (tmp_path / "w.pth").write_bytes(renamed)
            assert "best" in PublishedFile.read(tmp_path / "w.pth").left_out


# ------------------------------------------------------------------------------------------------ the checksum


def test_checksum_is_of_the_tensors(tmp_path, capsys):
    file, out = save_imagenet(published_resnet(), tmp_path / "w.pth"), tmp_path / "w.safetensors"
    digest = import_weights(file, out, SMALL)
    capsys.readouterr()
    assert main(["weights", "checksum", str(out)]) == 0
    assert capsys.readouterr().out == f"sha256 {digest}\n"
    tensors = read(out)
    assert checksum(dict(reversed(tensors.items()))) == digest
    changed = {**tensors, "conv1.weight": tensors["conv1.weight"].clone()}
    changed["conv1.weight"][0, 0, 0, 0] += 1e-3
    assert checksum(changed) != digest
    assert checksum({"a": torch.zeros(4)}) != checksum({"a": torch.zeros(2, 2)})
    start = tmp_path / "c.pt"
    assert import_weights(save_step(step_network([16]), tmp_path / "s.pth"), start, SMALL, task="15-5") == checksum(
        read(start)
    )


def test_imported_scales_are_positive(tmp_path):
    published = published_resnet()
    published.mod1.bn1.weight.data[:2] = torch.tensor([-0.5, 0.0])
    out = tmp_path / "w.safetensors"
    import_weights(save_imagenet(published, tmp_path / "w.pth"), out, SMALL)
    scale = read(out)["bn1.weight"]
    torch.testing.assert_close(scale[:2], torch.tensor([0.50001, 1e-5]), rtol=1e-6, atol=0)
    assert (scale > 0).all()
