"""What several models say of one image has the same channels and colours for the same classes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from tests.support.tiny_runs import save_tiny
from wilson.inference.predict import Predictor
from wilson.inference.side_by_side import side_by_side


def test_classes_of_several_models_share_their_place(tmp_path):
    device = torch.device("cpu")
    models = {
        "one": Predictor.load(save_tiny(tmp_path / "one.pt", "1,2/4"), device),
        "two": Predictor.load(save_tiny(tmp_path / "two.pt", "2/3,1"), device),
    }
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3)).astype(np.uint8))
    colours, seen = side_by_side(image, models)
    assert list(colours) == ["background", "ant", "bee", "dog", "cat"] and len(set(colours.values())) == 5
    for title, model in models.items():
        names = dict(zip(model.ids.tolist(), model.classes, strict=True))
        expected = np.vectorize(names.get)(model.predict(image))
        found = np.array(list(colours))[seen[title].labels]
        assert (found == expected).mean() > 0.999 and len(np.unique(found)) > 1
        shares = [100 * (found == name).mean() for name in colours]
        assert np.allclose(seen[title].shares, shares, atol=0.06)
        assert np.allclose(seen[title].sure, model.probabilities(image).max(0))
