"""The named recipes: where the options of a run start from."""

from __future__ import annotations

from .options import Config, DataConfig, LossConfig, ModelConfig, StepConfig

DEMO = Config(
    recipe="demo",
    task="5-3",
    protocol="disjoint",
    data=DataConfig(root="synthetic", train_split="train", val_split="val", crop=64, workers=0),
    model=ModelConfig("small_resnet", "none", stride=4, head_channels=64, localizer_channels=64, dilations=(2,)),
    base=StepConfig(epochs=16, batch=16, lr_encoder=0.1, lr_head=0.1),
    step=StepConfig(epochs=11, batch=16, lr_encoder=0.02, lr_head=0.1),
    evaluate_every=16,  # at the end of each step
)

COCO_VOC = Config(
    recipe="coco-voc",
    task="coco-to-voc",
    protocol="disjoint",  # no image of the base step shows a class of VOC
    data=DataConfig(
        "data/coco", train_split="train2017", val_split="val2017", step_root="data/voc", crop=448, test_crop=512
    ),
    model=ModelConfig("wide_resnet38_a2", "weights/wide_resnet38_a2.safetensors", stride=8),
    step=StepConfig(epochs=30, lr_encoder=0.001),
    losses=LossConfig(alpha=0.9),
)

OWN = Config(
    recipe="own",
    data=DataConfig(root="data/mine", train_split="train", crop=112, workers=2, find_negatives=True),
    model=ModelConfig("small_resnet", "none", stride=4, head_channels=96, localizer_channels=96, dilations=(2, 4)),
    base=StepConfig(epochs=30, batch=16, lr_encoder=0.1, lr_head=0.1),
    step=StepConfig(epochs=20, batch=16, lr_encoder=0.02, lr_head=0.1),
)

# RaSP (Roy et al., CoLLAs 2023): 1000 iterations of 10 images, here 10 epochs of 40 passes over 5 images of 5 classes
FEW_SHOTS = Config(
    recipe="few-shots",
    data=DataConfig(shots=5),
    step=StepConfig(epochs=10, passes=40, batch=10, lr_encoder=0.001, lr_head=0.001),
)

RECIPES = {"voc": Config(), "own": OWN, "demo": DEMO, "coco-voc": COCO_VOC, "few-shots": FEW_SHOTS}
