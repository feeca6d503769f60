"""Maps from an image-text model, with small random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.support.data_sets import mask_of, write_voc
from tests.support.tiny_runs import one_line
from wilson.cli import main
from wilson.data.sources.prior_maps import read_maps
from wilson.priors.clip import TEMPLATES, Clip, dense_features, embed_words, open_model

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {
    "small-vit": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "small-rn": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models' weights."""
    folder = tmp_path_factory.mktemp("clip")
    for name, vision in VISION.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT}))
        open_clip.add_model_config(folder / f"{name}.json")
        torch.manual_seed(0)
        torch.save(open_clip.create_model(name).state_dict(), folder / f"{name}.pt")
    return folder


@pytest.fixture
def model(models: Path) -> Any:
    return open_model("small-vit", models / "small-vit.pt")


def test_each_position_is_its_own_value(model: Any) -> None:
    """A plain transcription, with the projections of the last block, at the model's own size."""
    visual = model.visual
    with torch.no_grad():
        image = torch.randn(2, 3, 32, 32)
        x = visual.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(2, 1, 16), x], 1) + visual.positional_embedding
        first, last = visual.transformer.resblocks
        x = first(visual.ln_pre(x))
        value = F.linear(last.ln_1(x), last.attn.in_proj_weight[32:], last.attn.in_proj_bias[32:])
        x = x + last.attn.out_proj(value)
        x = visual.ln_post(x + last.mlp(last.ln_2(x)))[:, 1:] @ visual.proj
        expected = F.normalize(x, dim=2).transpose(1, 2).view(2, 12, 4, 4)
    torch.testing.assert_close(dense_features(visual, image), expected)


def test_positions_of_a_larger_image_are_between_those_of_the_model(model: Any) -> None:
    found = dense_features(model.visual, torch.randn(1, 3, 48, 64))
    assert found.shape == (1, 12, 6, 8)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1, 6, 8))


def test_words_are_the_mean_of_their_templates(model: Any) -> None:
    tokenizer = open_clip.get_tokenizer("small-vit")
    (found,) = embed_words(model, tokenizer, ["horse"])
    with torch.no_grad():
        each = [model.encode_text(tokenizer([text.format("horse")]), normalize=True)[0] for text in TEMPLATES]
    torch.testing.assert_close(found, F.normalize(torch.stack(each).mean(0), dim=0))


def test_maps_compete_with_each_other_and_the_background(models: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    look = Clip("small-vit", models / "small-vit.pt", ["horse", "dog"], ["sky", "grass"])
    maps = look(image)
    assert maps.shape == (2, 4, 6)
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in look.normalization)
    features = dense_features(look.visual, ((pixels - mean) / std)[None])[0]
    scores = torch.einsum("cd,dhw->chw", look.texts, features) * look.model.logit_scale.exp()
    torch.testing.assert_close(maps, (scores.exp() / scores.exp().sum(0))[:2].detach())
    assert len(look.texts) == 4 and maps.sum(0).max() < 1


def command(root: Path, models: Path, *more: str) -> list[str]:
    out = ["--out", str(root / "maps"), "--root", str(root), "--split", "train"]
    return ["prior", "clip", *out, "--model", "small-vit", "--weights", str(models / "small-vit.pt"), *more]


def test_the_command(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_voc(tmp_path / "voc", {"a": mask_of(0, 1, size=(32, 48))}, classes=("background", "horse", "dog"))
    assert main(command(root, models, "--classes", "dog")) == 0
    maps, classes, _ = read_maps(root / "maps" / "a.npz")
    assert classes == ["dog"] and maps.shape == (1, 4, 6) and maps.max() > 0
    capsys.readouterr()
    for options, text in (
        (("--background", "sky"), "give another --out"),
        (("--model", "no-vit"), "open_clip has no such model"),
        (("--model", "small-rn", "--weights", str(models / "small-rn.pt")), "has no plain vision transformer"),
        (("--weights", str(models / "small-rn.pt")), "do not fit"),
        (("--weights", str(models / "none.pt")), "no such file"),
    ):
        assert main(command(root, models, "--classes", "dog", *options)) == 2
        assert text in one_line(capsys)
