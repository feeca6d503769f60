"""Configuration: frozen dataclasses and the named recipes. Every field is a command-line option with its help."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from wilson.methods.base import LossConfig
from wilson.models.backbone import Activation


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are cut."""

    root: str = "data/voc"
    """Folder in the VOC layout, or synthetic for the built-in data set."""
    train_split: str = "train_aug"
    """Name of the training list (built-in data set: train)."""
    val_split: str = "val"
    """Name of the validation list."""
    crop: int = 512
    """Side of the training crops and of the evaluated centre crops, in pixels."""
    workers: int = 4
    """Processes that load images; 0 loads in the main process. Results do not depend on it."""
    mean: tuple[float, float, float] | None = None
    """Mean of the image channels, RGB in 0..1; None for that of the backbone's weights."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of the image channels; None for that of the backbone's weights."""
    train_images: int = 2100
    """Training images of the built-in data set; not used for a folder."""
    val_images: int = 300
    """Validation images of the built-in data set; not used for a folder."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    backbone: str = "resnet101"
    """A timm model with features, wide_resnet38_a2, or small_resnet."""
    weights: str = "hub"
    """hub for timm's pretrained weights, none, or a local .safetensors or .pth file, such as one of weights import."""
    stride: int = 16
    """Pixels of the image per pixel of the features: 8 or 16 (wide_resnet38_a2: 8, small_resnet: 4)."""
    head_channels: int = 256
    """Channels of the decoder."""
    localizer_channels: int = 256
    """Channels of the localizer."""
    dilations: tuple[int, ...] | None = None
    """Dilations of the decoder; None for 6, 12, 18 at stride 16 and 12, 24, 32 at stride 8."""
    activation: Activation = "own"
    """Activation of a timm backbone: own, or leaky_relu (slope 0.01) as weights trained with in-place ABN need it."""


@dataclass(frozen=True)
class StepConfig:
    """How one step is trained: SGD with nesterov momentum."""

    epochs: int = 30
    """Passes over the step's images."""
    batch: int = 24
    """Images per iteration; an incomplete last batch is dropped."""
    lr_encoder: float = 0.01
    """Learning rate of the backbone."""
    lr_head: float = 0.01
    """Learning rate of decoder, classifiers and localizer."""
    warmup: int = 0
    """Epochs at a constant rate; in incremental steps also the epochs before SSS and SEG."""
    power: float = 0.9
    """Power of the schedule (1 - t/T)^power after the warm-up, t counted from the start."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 1e-4
    """Weight decay, of all parameters."""


@dataclass(frozen=True)
class Config:
    """A run: data, network, the steps and what they optimise."""

    recipe: Literal["voc", "demo"] = "voc"
    """Name of the recipe that the other values started from."""
    task: str = "15-5"
    """X-Y, mask ids or class names as in 8,9,cat/10,13, or offline."""
    protocol: Literal["disjoint", "overlap"] = "overlap"
    """Which images belong to a step."""
    method: Literal["wilson", "finetune", "offline"] = "wilson"
    """What the incremental steps do; offline trains all classes at once with dense labels."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""
    all_labels: bool = False
    """Give the image-level labels of old classes in incremental steps, too."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    base: StepConfig = field(default_factory=StepConfig)
    step: StepConfig = field(default_factory=lambda: StepConfig(epochs=40, lr_encoder=0.001, warmup=5))
    losses: LossConfig = field(default_factory=LossConfig)
    evaluate_every: int = 5
    """Epochs between evaluations; the last epoch is always evaluated."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision; auto is bf16 on GPUs that have it, fp16 on others, fp32 on the CPU."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_grad_norm: float | None = None
    """Clip the gradient to this norm; None leaves it. A norm that is not finite always stops the run."""

    def for_step(self, step: int) -> StepConfig:
        return self.base if step == 0 or self.method == "offline" else self.step


DEMO = Config(
    recipe="demo",
    task="5-3",
    protocol="disjoint",
    data=DataConfig(root="synthetic", train_split="train", val_split="val", crop=64, workers=0),
    model=ModelConfig("small_resnet", "none", stride=4, head_channels=64, localizer_channels=64, dilations=(2,)),
    base=StepConfig(epochs=16, batch=16, lr_encoder=0.1, lr_head=0.1),
    step=StepConfig(epochs=11, batch=16, lr_encoder=0.02, lr_head=0.1, warmup=3),
    evaluate_every=6,
)

RECIPES = {"voc": Config(), "demo": DEMO}


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, for YAML and checkpoints."""
    return asdict(config)


def save(config: Config, path: Path) -> None:
    """Write the configuration as YAML."""
    import yaml

    path.write_text(yaml.safe_dump(_plain(to_dict(config)), sort_keys=False))


def from_dict(values: dict[str, Any]) -> Config:
    """The configuration from the plain values of :func:`to_dict` or its YAML."""
    parts = {"data": DataConfig, "model": ModelConfig, "base": StepConfig, "step": StepConfig, "losses": LossConfig}
    known = {k: _tuples(v) for k, v in values.items() if k not in parts}
    nested = {k: kind(**_tuples(values[k])) for k, kind in parts.items() if k in values}
    return replace(Config(), **known, **nested)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value
