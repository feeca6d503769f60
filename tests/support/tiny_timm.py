"""A small vision transformer among timm's models, for runs on images of 32 pixels: patches of 8, four blocks."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

TINY_VIT = "wilson_tiny_vit"


@register_model
def wilson_tiny_vit(pretrained: bool = False, **options: Any) -> VisionTransformer:
    for word in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(word, None)
    return VisionTransformer(img_size=24, patch_size=8, embed_dim=24, depth=4, num_heads=2, reg_tokens=2, **options)
