"""Models of other libraries behind the protocol: what is found, what stays, what is refused."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wilson
from tests.support.foreign_models import CLASSES, ZOO, Net, Queries, Tokens, Two
from wilson import grown as grown_folder
from wilson.config import Config, DataConfig
from wilson.data.tasks import Task
from wilson.errors import UserError
from wilson.grown import Grown
from wilson.methods import Plop, Wilson
from wilson.models.foreign import Adapted, builders, heads

IMAGE = (2, 3, 32, 40)


def probabilities(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model.eval()(image).logits


@pytest.mark.parametrize("kernel", [1, 3])
def test_finds_classifier_and_features(kernel):
    net = Net(kernel=kernel)
    model = wilson.adapt(net)
    assert (model.found.classifier, model.found.features) == ("final", "backbone")
    assert (model.classes, model.feature_channels, model.found.stride) == (CLASSES, 12, 4)
    image = torch.randn(IMAGE)
    logits, features = model.eval()(image)
    torch.testing.assert_close(F.interpolate(logits, IMAGE[2:], mode="bilinear"), net(image))
    torch.testing.assert_close(features, net.backbone(image))


class Pyramid(nn.Module):
    """An encoder of stride 8, and a decoder that goes up to stride 1; a part of it takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 8, 8)
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(8, 8, 2, 2) for _ in range(3))
        self.head, self.unused = nn.Conv2d(8, CLASSES, 1), nn.Linear(100, 100)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.encoder(image)
        for layer in self.decoder:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize(("stride", "name", "found"), [(8, "encoder", 8), (4, "decoder.0", 4), (3, "decoder.1", 2)])
def test_finer_features_are_the_coarsest_that_will_do(stride, name, found, tmp_path):
    model = wilson.adapt(Pyramid())
    assert model.found.parameters == sum(p.numel() for p in model.parameters()) - 100 * 101
    finer = model.with_finer_features(stride)
    assert (finer.found.features, finer.found.stride) == (name, found)
    image = torch.randn(IMAGE)
    logits, features = finer.eval()(image)
    assert features.shape == (2, 8, 32 // found, 40 // found)
    assert torch.equal(logits, model.eval()(image).logits)
    groups = finer.parameter_groups()
    assert not list(groups["decoder"]) or name == "encoder"
    save(finer, tmp_path)
    (tmp_path / "mine.py").write_text("from tests.models.test_foreign import Pyramid as build\n")
    again = Grown(tmp_path, f"{tmp_path}/mine.py:build").model()
    assert again.found == finer.found and torch.equal(again(image).features, features)


def test_leaves_mode_weights_and_random_numbers_alone():
    net = Net().train()
    net.head.eval()
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    torch.manual_seed(3)
    first = torch.rand(())
    torch.manual_seed(3)
    wilson.adapt(net)
    assert torch.rand(()) == first and [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    "make", [Net, lambda: Net(kernel=3), lambda: Net(bias=False), Tokens, lambda: Net(aux=True)],
    ids=["1x1", "3x3", "without bias", "linear on tokens", "auxiliary head"],
)  # fmt: skip
def test_extended_keeps_the_old_logits(make):
    model = wilson.adapt(make())
    grown = model.extended(2)
    image = torch.randn(IMAGE)
    old, new = probabilities(model, image), probabilities(grown, image)
    assert new.shape[1] == model.classes + 2 and torch.equal(new[:, : model.classes], old)
    assert model.classes == CLASSES and grown.extended(1).classes == CLASSES + 3
    classifier: Any = grown.classifier
    with torch.no_grad():
        classifier.weight += 1
    assert torch.equal(probabilities(model, image), old), "a copy shares nothing"


def test_a_transposed_convolution_is_extended():
    layer = nn.ConvTranspose2d(5, 3, 2, 2)
    grown, x = heads.extended(layer, 2), torch.randn(1, 5, 4, 4)
    torch.testing.assert_close(grown(x)[:, :3], layer(x))
    assert grown(x).shape[1] == 5


def test_a_background_elsewhere_comes_first():
    net = Net()
    names = ("cat", "dog", "wall", "sky")
    model = wilson.adapt(net, classes=names, background="wall")
    assert model.class_names == ("background", "cat", "dog", "sky")
    image = torch.randn(IMAGE)
    logits, plain = probabilities(model, image), probabilities(wilson.adapt(Net()), image)
    raw = net.final(net.head.eval()(net.backbone(image)))
    torch.testing.assert_close(logits, raw[:, [2, 0, 1, 3]])
    assert plain.shape == logits.shape
    grown = model.extended(1)
    grown.rename(("background", "cat", "dog", "sky", "zebra"))
    assert grown.in_order_of_module(grown.names()) == ["cat", "dog", "wall", "sky", "zebra"]
    torch.testing.assert_close(probabilities(grown, image)[:, :4], logits)


def test_new_classes_share_the_probability_of_the_background():
    model = wilson.adapt(Net(), classes=("a", "background", "b", "c"))
    grown, image = model.extended(2), torch.randn(IMAGE)
    grown.start_from_background(2)
    old, new = probabilities(model, image).softmax(1), probabilities(grown, image).softmax(1)
    torch.testing.assert_close(new[:, [0, 4, 5]], (old[:, :1] / 3).expand(-1, 3, -1, -1))
    torch.testing.assert_close(new[:, 1:4], old[:, 1:])
    with pytest.raises(UserError, match="no bias"):
        wilson.adapt(Net(bias=False)).extended(1).start_from_background(1)


def test_scores_turned_into_sigmoids_are_found():
    assert wilson.adapt(nn.Sequential(Net(), nn.Sigmoid()), output="sigmoid").found.classifier == "0.final"


def test_an_auxiliary_head_stays_where_training_needs_it():
    class Training(Net):
        def forward(self, image):
            features = self.backbone(image)
            scores = self.up(self.final(self.head(features)), image)
            aux: Any = self.aux_head
            return (scores, aux(features)) if self.training else scores

    net = Training(aux=True)
    before = copy.deepcopy(net.state_dict())
    model = wilson.adapt(net)
    assert model.extended(1).train()(torch.randn(IMAGE)).logits.shape[1] == CLASSES + 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert wilson.adapt(Net(aux=True)).module.aux_head is None


def test_what_learns_in_the_extended_copy():
    def learning(model):
        return {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}

    everything, part = learning(wilson.adapt(Net())), Net()
    assert learning(wilson.adapt(Net().requires_grad_(False)).extended(1)) == everything
    part.backbone.requires_grad_(False)
    part.final.requires_grad_(False)
    assert learning(wilson.adapt(part).extended(1)) == {name for name in everything if "backbone" not in name}
    model = wilson.adapt(Net())
    Wilson(model.extended(1), model)
    assert learning(wilson.adapt(model.module).extended(1)) == everything


def test_a_model_that_cannot_be_copied_is_refused():
    net = Net()
    net.kept = torch.ones(1, requires_grad=True) * 2  # of a graph, which torch does not copy
    with pytest.raises(UserError, match="cannot be copied"):
        wilson.adapt(net).extended(1)


def test_groups_hold_every_parameter_once():
    for model in (wilson.adapt(Net()), wilson.adapt(Net(), features="classifier input")):
        groups = {name: list(parameters) for name, parameters in model.parameter_groups().items()}
        ids = [id(parameter) for group in groups.values() for parameter in group]
        assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
        assert groups["classifiers"] == list(model.module.final.parameters())


def test_features_can_be_what_the_classifier_reads():
    model = wilson.adapt(Net(), features="classifier input")
    assert model.feature_channels == 8 and model.eval()(torch.randn(IMAGE)).features.shape == (2, 8, 8, 10)


def test_names_and_counts_of_transformers_follow():
    net: Any = Net()
    net.config = SimpleNamespace(id2label={0: "background", 1: "a", 2: "b", 3: "c"}, label2id={}, num_labels=4)
    grown: Any = wilson.adapt(net).extended(1)
    grown.rename((*grown.names()[:-1], "zebra"))
    assert grown.module.config.id2label[4] == "zebra" and grown.module.config.num_labels == 5
    assert grown.module.config.label2id["zebra"] == 4 and net.config.num_labels == 4
    net.config.id2label = {0: "sky", 1: "wall", 2: "b", 3: "c"}
    grown = wilson.adapt(net, background="wall").extended(1)
    assert list(grown.module.config.id2label.values()) == ["sky", "wall", "b", "c", "new 1"]


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (Two, {}, "adds up 2 classifiers"),
        (Queries, {}, "by queries"),
        (lambda: nn.Conv2d(3, 1, 1), {}, "single output channel"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 128 * 128, 2)), {}, "no map"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 7)), {}, "cannot be run"),
        (nn.ReLU, {}, "no parameters"),
        (Net, {"classifier": "nowhere"}, "no module 'nowhere'"),
        (Net, {"classifier": "backbone"}, "expected one of Conv2d"),
        (Net, {"features": "nowhere"}, "no module 'nowhere'"),
        (Net, {"classes": ("a", "b")}, "4 outputs, got 2 names"),
        (Net, {"classes": ("wall", "sky", "tree", "cat")}, "background='wall'"),
        (Net, {"background": "wall"}, "no names"),
        (Net, {"background": 4}, "from 0 to 3"),
        (Net, {"output": "relu"}, "softmax or sigmoid"),
        (Net, {"mean": (0.5,)}, "mean: expected a number each"),
        (Net, {"mean": 0.5}, "mean: expected a number each"),
        (Net, {"std": (1, 1, 0)}, "std: expected .* above 0"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), {}, "cannot be run"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2)), {}, "2 groups"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2)), {}, "Name the right one"),
    ],
)  # fmt: skip
def test_what_is_refused(make, options, match):
    with pytest.raises(UserError, match=match):
        wilson.adapt(make(), **options)


def test_plop_refuses_and_wilson_learns():
    model = wilson.adapt(Net()).eval()
    batch = {
        "image": torch.randn(2, 3, 32, 32), "rgb": torch.rand(2, 3, 32, 32),
        "labels": torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 0]]), "mask": torch.zeros(2, 32, 32, dtype=torch.long),
    }  # fmt: skip
    grown, another = model.extended(1), model.extended(1)
    with pytest.raises(UserError, match="plop"):
        Plop(another, model)(batch, 0)
    method = Wilson(grown, model).train()
    terms = method(batch, 9)
    assert set(terms) == {"cls", "loc", "enc", "sss", "seg"}
    sum(terms.values()).backward()
    learned: Any = method.model.classifier
    assert learned.weight.grad[-1].abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_losses_are_those_of_one_versus_rest_logits_at_the_size_of_the_logits():
    """A softmax model's probabilities are what LOC and SEG read: shifting all of its logits changes nothing."""

    class Fine(Net):
        def forward(self, image):
            return self.final(self.up(self.head(self.backbone(image)), image))

    model = wilson.adapt(Fine()).eval()
    grown = model.extended(1)
    batch = {
        "image": torch.randn(2, 3, 16, 16), "rgb": torch.rand(2, 3, 16, 16),
        "labels": torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 1]]),
    }  # fmt: skip
    method = Wilson(grown, model).eval()
    method.localizer.eval()
    before = method(batch, 9)
    old_classifier: Any = model.classifier
    classifier: Any = grown.classifier
    with torch.no_grad():
        old_classifier.bias += 5
        classifier.bias += 7
    after = method(batch, 9)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, msg=name)


def test_a_folder_holds_the_model(tmp_path):
    (tmp_path / "mine.py").write_text("from tests.support.foreign_models import Net as build\n")
    builder = f"{tmp_path / 'mine.py'}:build"
    grown = wilson.adapt(Net(), classes=("a", "background", "b", "c"), mean=(0.1, 0.2, 0.3)).extended(1)
    grown.rename((*grown.names()[:-1], "zebra"))
    save(grown, tmp_path / "model", builder)
    with pytest.raises(UserError, match="no code is run unless you name it"):
        Grown(tmp_path / "model").model()
    loaded = Grown(tmp_path / "model", builder).model()
    image = torch.randn(IMAGE)
    assert torch.equal(probabilities(loaded, image), probabilities(grown, image))
    assert loaded.names() == ("background", "a", "b", "c", "zebra") and loaded.mean == (0.1, 0.2, 0.3)
    told = json.loads((tmp_path / "model" / "wilson.json").read_text())
    for key, wrong in (("format", 9), ("classes", 3), ("found", {}), ("output", "tanh")):
        (tmp_path / "model" / "wilson.json").write_text(json.dumps({**told, key: wrong}))
        with pytest.raises(UserError, match="not the description"):
            Grown(tmp_path / "model", builder)


def test_a_folder_holds_weights_of_two_names(tmp_path):
    (tmp_path / "tied.py").write_text(
        "from tests.support.foreign_models import Net\n"
        "def build():\n    net = Net()\n    net.again = net.head\n    net.more = type(net.final)(8, 4, 1)\n"
        "    net.more.bias = net.backbone[0].bias\n    return net\n"
    )
    builder = f"{tmp_path / 'tied.py'}:build"
    grown = wilson.adapt(builders.build(builder)).extended(1)
    grown.rename((*grown.names()[:-1], "zebra"))
    save(grown, tmp_path / "model", builder)
    found = builders.read_state(tmp_path / "model" / "model.safetensors")
    assert found.keys() == grown.module.state_dict().keys()
    loaded, image = Grown(tmp_path / "model", builder).model(), torch.randn(IMAGE)
    assert torch.equal(probabilities(loaded, image), probabilities(grown, image))


def test_a_folder_of_smp_is_read_again(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    net = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES, encoder_depth=3, decoder_channels=(16, 8, 8))
    net.eval().save_pretrained(tmp_path / "old")
    query = f"?encoder_name=resnet18&encoder_depth=3&decoder_channels=[16,8,8]&classes={CLASSES}"
    for number, origin in enumerate((f"smp:{tmp_path / 'old'}", f"smp:Unet{query}")):
        grown = wilson.adapt(builders.build(origin, net.state_dict())).extended(1)
        grown.rename((*grown.names()[:-1], "zebra"))
        save(grown, tmp_path / str(number), origin)
        again, image = Grown(tmp_path / str(number)).model(), torch.randn(1, 3, 32, 32)
        assert torch.equal(probabilities(again, image), probabilities(grown, image)), origin


def test_the_code_that_a_user_names_runs_as_a_script_does(tmp_path, monkeypatch):
    (tmp_path / "beside_the_builder.py").write_text("from tests.support.foreign_models import Net\n")
    (tmp_path / "torch.py").write_text(
        "from __future__ import annotations\nimport dataclasses, sys\nfrom beside_the_builder import Net\n"
        "@dataclasses.dataclass\nclass Options:\n    classes: int = 4\n"
        "def build(): return Net(Options().classes)\ndef fails(): raise KeyError('no weights here')\n"
        "def leaves(): sys.exit(3)\n"
    )
    (tmp_path / "wrong.py").write_text("def build(:\n")
    before = list(sys.path)
    assert isinstance(builders.build(f"{tmp_path / 'torch.py'}:build"), Net)
    failures = {"torch.py:fails": "KeyError: 'no weights", "torch.py:leaves": "SystemExit", "wrong.py:build": "Syntax"}
    for name, match in failures.items():
        with pytest.raises(UserError, match=f"{name}: this code failed: {match}"):
            builders.build(f"{tmp_path / name}")
    assert sys.path == before
    (tmp_path / "config.json").write_text("{}")
    for package, what in (("transformers", str(tmp_path)), ("segmentation_models_pytorch", "smp:Unet")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=f"pip install {package.replace('_', '-')}"):
            builders.build(what, {})


def test_published_models_tell_their_classes():
    pytest.importorskip("torchvision")
    names = builders.published_classes("torchvision:deeplabv3_resnet50")
    assert names is not None and names[:2] == ("__background__", "aeroplane") and len(names) == 21
    assert builders.published_classes("torchvision:none") is None and builders.published_classes("smp:Unet") is None


def test_states_of_many_trainers_are_read(tmp_path):
    state = Net().state_dict()
    for number, value in enumerate((
        state, {"state_dict": state, "epoch": 3}, {"model": {f"module.{k}": v for k, v in state.items()}},
    )):  # fmt: skip
        torch.save(value, tmp_path / f"{number}.pt")
        found = builders.read_state(tmp_path / f"{number}.pt")
        assert found.keys() == state.keys()
        builders.load(Net(), found, "Net")
    with pytest.raises(UserError, match="do not fit"):
        builders.load(Net(classes=7), state, "Net")
    with pytest.raises(UserError, match="expected torchvision:NAME"):
        builders.build("nothing")


@pytest.mark.slow
@pytest.mark.parametrize("library", ZOO)
def test_models_of_other_libraries(library, tmp_path):
    """Each is adapted, trained for an iteration, extended, saved, and loaded by its own library."""
    package, zoo = ZOO[library]
    pytest.importorskip(package)
    for name, make in zoo().items():
        torch.manual_seed(0)
        model = wilson.adapt(make()).eval()
        size = model.found.size
        method = Wilson(model.extended(2), model).train()
        image = torch.randn(2, 3, size, size)
        labels = torch.zeros(2, CLASSES + 1)
        labels[:, -1] = 1
        terms = method({"image": image, "rgb": torch.rand_like(image), "labels": labels}, 99)
        sum(terms.values()).backward()
        torch.optim.SGD(method.parameters(), 1e-3).step()
        grown = method.model.eval()
        assert isinstance(grown, Adapted)
        grown.rename((*model.names(), "zebra", "okapi"))
        save(grown, tmp_path / name)
        again = load_by_library(library, make, tmp_path / name)
        with torch.no_grad():
            expected, found = (wilson.adapt(m).eval()(image).logits for m in (grown.module, again))
        saved, loaded = grown.module.state_dict(), again.state_dict()
        assert saved.keys() == loaded.keys() and all(torch.equal(saved[key], loaded[key]) for key in saved), name
        # Libraries of matrices may round otherwise where weights begin at another address.
        torch.testing.assert_close(found, expected, msg=name)
        assert expected.shape[1] == CLASSES + 2, name


def save(grown, folder, origin=None):
    """Write a grown model as `wilson add` does; half of its classes are new, which no test here looks at."""
    ids = tuple(range(1, grown.classes))
    task = Task("old + new", grown.names(), (ids[:1], ids[1:]))
    config = Config(data=DataConfig(mean=grown.mean, std=grown.std))
    entry = {"step": 1, "classes": list(grown.names()), "iou": {}, "miou": {}, "pixel_accuracy": None}
    grown_folder.save(grown, config, task, [entry], folder, origin)


def load_by_library(library, make, path):
    if library == "transformers":
        from transformers import AutoModelForSemanticSegmentation

        model = AutoModelForSemanticSegmentation.from_pretrained(path)
        assert model.config.id2label[CLASSES + 1] == "okapi"
        return model
    spec = importlib.util.find_spec(ZOO[library][0])
    assert spec is not None
    from safetensors.torch import load_file

    state = load_file(path / "model.safetensors")
    model = make()
    classifier = wilson.adapt(model).found.classifier
    model.set_submodule(classifier, heads.extended(model.get_submodule(classifier), 2))
    model.load_state_dict(state)
    return model
