"""Maps from an image-text model (CLIP), read densely as in MaskCLIP (Zhou et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from wilson.data.transforms import Normalization
from wilson.errors import UserError, first_line
from wilson.models.weight_files import load_weights

from .maps import resized

TEMPLATES = (
    *("a photo of a {}.", "a photo of the {}.", "a photo of many {}.", "a blurry photo of a {}."),
    *("a cropped photo of a {}.", "a photo of a large {}.", "a photo of a small {}.", "there is a {} in the scene."),
)
BACKGROUND = (
    *("sky", "cloud", "grass", "ground", "sand", "snow", "water", "sea", "tree", "forest", "mountain", "rock", "road"),
    *("building", "wall", "floor", "ceiling", "window", "curtain", "fence"),
)


class Clip:
    """Looks at an image and tells where an image-text model sees each class.

    With v_i the unit feature of position i, and e_c the unit mean of the text embeddings of word c in the templates::

        p_n,i = softmax_c(scale v_i . e_c)[n]      over the classes and the words of the background

    The position's feature is what the last block makes of it when each position attends to itself alone: its value and
    output projections, instead of the attention that gathers the image for the class token.

    Args:
        model: name of an open_clip model with a vision transformer, as in ViT-B-16.
        weights: local file of its weights.
        classes: names of the N classes.
        background: words that stand for everything else.
        size: short side of the image; None for that of the model.
        device: runs the model.

    Raises:
        UserError: there is no such model, it has no vision transformer of open_clip's own, or the weights do not fit.
    """

    def __init__(
        self,
        model: str,
        weights: Path,
        classes: Sequence[str],
        background: Sequence[str] = BACKGROUND,
        size: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        import open_clip

        self.model = open_model(model, weights).to(device)
        self.visual = self.model.visual
        self.size, self.device, self.count = size or min(self.visual.image_size), device, len(classes)
        config = open_clip.get_model_preprocess_cfg(self.model)
        self.normalization = Normalization(tuple(config["mean"]), tuple(config["std"]))
        self.texts = embed_words(self.model, open_clip.get_tokenizer(model), [*classes, *background], device)

    @torch.no_grad()
    def __call__(self, image: Image) -> Tensor:
        """Maps (N, h, w) in 0..1 of an upright RGB image."""
        (patch, _) = self.visual.patch_size
        pixels = resized(image, self.size, patch, self.normalization).to(self.device)
        likeness = torch.einsum("dhw,cd->chw", dense_features(self.visual, pixels)[0], self.texts)
        maps: Tensor = (self.model.logit_scale.exp() * likeness).softmax(0)
        return maps[: self.count]


def open_model(name: str, weights: Path) -> Any:
    """An open_clip model with local weights, in eval mode; UserError if there is none of the kind."""
    import open_clip

    if name not in open_clip.list_models():
        raise UserError(f"--model {name}: open_clip has no such model; give one such as ViT-B-16")
    try:
        model = open_clip.create_model(name, load_weights=False)
    except Exception as error:  # parts of other libraries that are missing, and files that would be fetched
        raise UserError(
            f"--model {name}: cannot be made: {first_line(error)}; give another, such as ViT-B-16"
        ) from error
    visual = model.visual
    if type(visual) is not open_clip.transformer.VisionTransformer or visual.attn_pool is not None:
        raise UserError(f"--model {name}: has no plain vision transformer; give one such as ViT-B-16")
    load_weights(model, weights)
    return model.eval()


@torch.no_grad()
def embed_words(model: Any, tokenizer: Any, words: Sequence[str], device: torch.device | None = None) -> Tensor:
    """The unit mean of the unit text embeddings of each word in the templates, (words, D)."""
    found = []
    for word in words:
        tokens = tokenizer([template.format(word) for template in TEMPLATES]).to(device)
        embedded = F.normalize(model.encode_text(tokens), dim=-1)
        found.append(F.normalize(embedded.mean(0), dim=0))
    return torch.stack(found)


@torch.no_grad()
def dense_features(visual: Any, images: Tensor) -> Tensor:
    """Unit features of every position of a vision transformer in the text's space: (B, 3, H, W) -> (B, D, h, w).

    The position embedding is interpolated to the image. The rest is the transformer's own forward pass.
    """
    x = visual.conv1(images)
    batch, channels, height, width = x.shape
    x = torch.cat([visual.class_embedding.expand(batch, 1, -1), x.flatten(2).movedim(1, 2)], 1)
    embedding = visual.positional_embedding
    grid = embedding[1:].T.reshape(1, channels, *visual.grid_size)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False, antialias=False)
    x = visual.ln_pre(x + torch.cat([embedding[:1], grid[0].flatten(1).T]))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    alone = torch.full((x.shape[1], x.shape[1]), -torch.inf, device=x.device).fill_diagonal_(0)
    x = visual.ln_post(last(x, attn_mask=alone)[:, 1:]) @ visual.proj
    return F.normalize(x, dim=-1).movedim(1, 2).reshape(batch, -1, height, width)
