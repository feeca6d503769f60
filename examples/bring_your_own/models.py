"""Small models of three libraries, as their users build them. `wilson add --to THIS_FILE:unet` takes each."""

from torch import nn

CLASSES = 6  # background and the five textures of the built-in data


def fcn() -> nn.Module:
    """torchvision's FCN on half a ResNet-18, without the first pooling, for small images; features of stride 4."""
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    backbone = resnet18(weights=None)
    backbone.maxpool = nn.Identity()
    return FCN(IntermediateLayerGetter(backbone, {"layer2": "out"}), FCNHead(128, CLASSES))


def unet() -> nn.Module:
    """A Unet of segmentation_models.pytorch on a ResNet-18 of three stages; its features have stride 8."""
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_depth=3, encoder_weights=None, decoder_channels=(64, 32, 16), classes=CLASSES)


def segformer() -> nn.Module:
    """A SegFormer of transformers, smaller than B0; its features have stride 8."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 48, 64, 96],
        num_attention_heads=[1, 2, 2, 4],
        strides=[4, 2, 1, 1],
        sr_ratios=[4, 2, 1, 1],
        decoder_hidden_size=64,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        num_labels=CLASSES,
    )
    return SegformerForSemanticSegmentation(config)


MODELS = {"fcn": fcn, "unet": unet, "segformer": segformer}
