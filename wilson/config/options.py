"""The options of a run, as frozen dataclasses: each field is a command-line option, its docstring the help.

The type of a field holds its range: it is checked when the dataclass is made, and shown in the help.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import Literal, TypeAlias, get_args

from pydantic.dataclasses import dataclass

from .ranges import (
    AtLeastOne,
    BelowOne,
    Count,
    CountOrZero,
    Counts,
    Flag,
    NotNegative,
    Positive,
    PositiveShare,
    Seed,
    Share,
)
from .validation import CHECKED, told

ImageLevelMethod: TypeAlias = Literal["wilson", "rasp", "finetune", "cam", "ss", "eps", "seam"]
MaskMethod: TypeAlias = Literal["finetune-pixel", "lwf", "lwf-mc", "ilt", "mib", "sdr", "plop", "joint", "offline"]
MethodName: TypeAlias = Literal[ImageLevelMethod, MaskMethod]
RecipeName: TypeAlias = Literal["voc", "own", "demo", "coco-voc", "few-shots"]
Prior: TypeAlias = Literal["loc", "softmax", "fixed", "background", "none"]
PriorUse: TypeAlias = Literal["loss", "mix"]
Pooling: TypeAlias = Literal["ngwp_focal", "ngwp", "gap"]
Activation: TypeAlias = Literal["own", "leaky_relu"]
Optimizer: TypeAlias = Literal["sgd", "adamw"]
WeightMerge: TypeAlias = Literal["none", "ewf"]
ProtocolName: TypeAlias = Literal["disjoint", "overlap"]

# Epochs of warm-up in incremental steps that learn from image-level labels
WARMUP: dict[RecipeName, int] = {"voc": 5, "own": 5, "demo": 3, "coco-voc": 5, "few-shots": 2}


@told
@dataclass(frozen=True, config=CHECKED)
class DataConfig:
    """Which images, and how they are cut."""

    root: str = "data/voc"
    """Folder in the layout of VOC or COCO, or synthetic for the built-in data set."""
    train_split: str = "train_aug"
    """Name of the training list (COCO: train2017, built-in data set: train)."""
    val_split: str = "val"
    """Name of the validation list (COCO: val2017)."""
    step_root: str | None = None
    """Data set of the incremental steps, its classes found by name among those of the root; None for the root."""
    step_train_split: str = "train_aug"
    """Name of the training list of step_root."""
    step_val_split: str = "val"
    """Name of the validation list of step_root, on which a model is tested, too."""
    labels: str | None = None
    """Images and image-level labels of the incremental steps, instead of those of the root: a folder with one subfolder
    of images per class, a CSV file (image,class or image,NAME,NAME with 0 and 1) or lines as in image_labels.txt.
    Images without a class are taken as negatives; those of the validation list are left out."""
    saliency: str | None = None
    """Folder of saliency maps for the method eps: a grey NAME.png for each training image, white where salient. NAME is
    the image's path in its folder, without the extension."""
    prior: str | None = None
    """Folder of maps of the new classes for the methods wilson and rasp, as wilson prior head writes them: a NAME.npz
    for each image of the step, NAME as for saliency. What they are used for: losses.prior_use."""
    regions: str | None = None
    """Folder of regions for the methods wilson and rasp, as wilson regions writes them: a NAME.png of ids for each
    image of the step, NAME as for saliency. Each region votes for one class of its pseudo-labels (SASA)."""
    similarity: str | None = None
    """Table of how near the names of the classes are for the method rasp, as wilson prior names writes it."""
    negatives: str | None = None
    """Folder of images without any class of the step, which then may be a single one; without any class at all with
    --all-labels. Those of the validation list are left out."""
    find_negatives: Flag = False
    """Take as negatives, too, the images of the incremental steps' training list whose masks or labels show no class of
    the step (with --all-labels no class at all; under the protocol disjoint none of a later step either)."""
    negative_share: Share = 0.25
    """Share of each batch that negatives take."""
    skip_corrupt: Flag = False
    """Leave out images that cannot be read or whose mask does not fit, and count them in results.json; reads all images
    once. Otherwise such an image stops the run."""
    crop: Count = 512
    """Side of the training crops, in pixels."""
    test_crop: Count | None = None
    """Side of the evaluated centre crops, and the short side of predicted images, in pixels; None for the training
    crop (COCO-to-VOC: 512)."""
    workers: CountOrZero = 4
    """Processes that load images; 0 loads in the main process. Results do not depend on it."""
    mean: tuple[Share, Share, Share] | None = None
    """Mean of the image channels, RGB in 0..1; None for that of the backbone's weights."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of the image channels; None for that of the backbone's weights."""
    replay: CountOrZero = 0
    """Images of the base step that wilson and rasp see again in later steps, with their masks, the classes in turn."""
    replay_share: Share = 0.25
    """Share of each batch that replayed images take."""
    shots: Count | None = None
    """Few-shot learning: so many training images of each class of an incremental step, drawn by the seed; None for
    all."""
    train_images: Count = 2100
    """Training images of the built-in data set; not used for a folder."""
    val_images: Count = 300
    """Validation images of the built-in data set; not used for a folder."""

    @property
    def tested_crop(self) -> int:
        """Side of the evaluated centre crops."""
        return self.crop if self.test_crop is None else self.test_crop


@told
@dataclass(frozen=True, config=CHECKED)
class ModelConfig:
    """The network."""

    backbone: str = "resnet101"
    """A timm model with features (resnet101, vit_small_patch14_dinov2), SegFormer's mit_b0 to mit_b5, wide_resnet38_a2,
    or small_resnet."""
    weights: str = "hub"
    """hub for timm's pretrained weights (mit: segmentation_models.pytorch's), none, or a local .safetensors or .pth
    file, such as one of weights import."""
    stride: Count = 16
    """Pixels of the image per pixel of the features: 8 or 16 (plain vision transformers: the side of their patches,
    swin, pvt and mit: 4 to 32, wide_resnet38_a2: 8, small_resnet: 4)."""
    head_channels: Count = 256
    """Channels of the decoder."""
    localizer_channels: Count = 256
    """Channels of the localizer."""
    dilations: Counts | None = None
    """Dilations of the decoder; None for 6, 12, 18 at stride 16, 12, 24, 32 at stride 8, and those that reach as far at
    another stride."""
    activation: Activation = "own"
    """Activation of a timm backbone: own, or leaky_relu (slope 0.01) as weights trained with in-place ABN need it."""


@told
@dataclass(frozen=True, config=CHECKED)
class StepConfig:
    """How one step is trained."""

    epochs: Count = 30
    """Epochs of the step."""
    batch: Count = 24
    """Images per iteration, over all processes; an incomplete last batch is dropped."""
    lr_encoder: NotNegative = 0.01
    """Learning rate of the backbone."""
    lr_head: NotNegative = 0.01
    """Learning rate of decoder, classifiers and localizer."""
    warmup: CountOrZero | None = None
    """Epochs at a constant rate; with image-level labels also the epochs before SSS and SEG. None for the recipe's
    (5, demo 3, few-shots 2) in incremental steps from image-level labels, and 0 for learning from masks."""
    power: NotNegative = 0.9
    """Power of the schedule (1 - t/T)^power after the warm-up, t counted from the start."""
    momentum: BelowOne = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: NotNegative = 1e-4
    """Weight decay, of all parameters."""
    accumulate: Count = 1
    """Split each process's share of a batch into this many parts and compute them one after the other, to save memory.
    The result is that of 1 with --freeze-norm, if every image counts in SEG (with alpha under 1 it does); otherwise
    batch-norm sees smaller batches."""
    freeze_norm: Flag = False
    """Normalise by the running statistics in training, too, and leave them as they are; scale and shift are trained."""
    optimizer: Optimizer = "sgd"
    """sgd with nesterov momentum, or adamw, which transformers need; learning rates are then a tenth or less."""
    layer_decay: PositiveShare = 1.0
    """Factor on the learning rate from each layer of the backbone to the one before it, for transformers (0.65 to
    0.9); 1 for one rate in all layers. The layers are those that timm numbers."""
    checkpointing: Flag = False
    """Compute the backbone's activations again in the backward pass instead of keeping them: less memory, more time,
    the same result. Batch-norm in the backbone must be frozen."""
    passes: Count = 1
    """Passes over the images that make an epoch, each with crops of its own; more than 1 for few images."""


@told
@dataclass(frozen=True, config=CHECKED)
class LossConfig:
    """Weights and settings of the loss terms; a weight of 0 switches a term off."""

    mode: Literal["official", "paper"] = "official"
    """official computes what the published code does, paper what the equations say: eps 1e-5, ENC summed over channels,
    pseudo-labels not gated by the image-level labels, no least threshold in SSS."""
    cls: NotNegative = 1.0
    """Classification: pooled localizer scores against image-level labels (Eq. 3)."""
    loc: NotNegative = 1.0
    """Localization prior: localizer against the old model (Eq. 4)."""
    enc: NotNegative = 1.0
    """Encoder: features against the old model's."""
    sss: NotNegative = 1.0
    """Self-supervised segmentation of the localizer."""
    seg: NotNegative = 1.0
    """Segmentation against the merged pseudo-labels (Eq. 7)."""
    prior: Prior = "loc"
    """Localization prior: loc (Eq. 4); softmax, cross-entropy of the softmax over all classes against the old model's
    softmax; fixed, the old model's logits instead of the localizer's scores of old classes; background, a
    background score of 1 at every pixel; none. With the last three there is no LOC term."""
    prior_use: PriorUse = "loss"
    """What the maps of data.prior are used for: loss, as targets of the localizer's scores; mix, mixed into the
    localizer's probabilities from which the pseudo-labels are made."""
    prior_weight: Share = 0.5
    """Share of the maps that are mixed in, 0..1."""
    maps: NotNegative = 1.0
    """Maps: localizer against the maps of data.prior, where these are used as a loss."""
    names: NotNegative = 1.0
    """Names: localizer against the similarity of the class names (rasp)."""
    names_pooling: Flag = False
    """Let the similarity of the class names also weigh the softmax of new classes in the pooling (rasp)."""
    merge: Flag = True
    """Take old classes from the old model in the pseudo-labels; without, all classes from the localizer, only the new
    ones gated by the image-level labels."""
    alpha: Share = 0.5
    """Share of hard labels in the pseudo-labels, 0..1 (COCO-to-VOC: 0.9)."""
    background: Share | None = None
    """Weight of the localizer in the merged background, 0..1; None for the minimum of both."""
    old_yields: Flag | None = None
    """Lower the old model's probabilities in the pseudo-labels by what the localizer gives to the image's new classes;
    None for yes where the old model is one of another library with a softmax output."""
    eps: Positive | None = None
    """Added to the mass of a class in the pooling; None for that of the mode, 1 or 1e-5."""
    gamma: AtLeastOne = 3.0
    """Power of the focal penalty."""
    lam: Positive = 0.01
    """Added to the share of a class in the focal penalty."""
    pooling: Pooling = "ngwp_focal"
    """How CLS pools scores: by their softmax with a focal penalty (Eq. 1, 2), without it, or by the plain mean."""
    pamr_iterations: Count = 10
    """Iterations of PAMR."""
    pamr_dilations: Counts = (1, 2, 4, 8, 12)
    """Distances of PAMR's neighbours, in feature pixels."""
    distillation: NotNegative = 1.0
    """Factor on the published weights of what lwf, lwf-mc, ilt, mib, sdr and plop distil from the old model."""


@told
@dataclass(frozen=True, config=CHECKED)
class Config:
    """A run: data, network, the steps and what they optimise."""

    recipe: RecipeName = "voc"
    """Name of the recipe that the other values started from."""
    task: str = "15-5"
    """X-Y, mask ids or class names as in 8,9,cat/10,13, offline, or coco-to-voc."""
    protocol: ProtocolName = "overlap"
    """Which images belong to a step."""
    method: MethodName = "wilson"
    """What the incremental steps do. From image-level labels: wilson; rasp, which adds what the names of the classes
    tell; finetune; and the two-stage rivals cam, ss, eps and seam, whose localizer learns in the warm-up epochs. From
    masks of the step: finetune-pixel, lwf, lwf-mc, ilt, mib, sdr, plop. From all masks: joint, the classes seen so far
    at each step; offline, all classes at once."""
    seed: Seed = 0
    """Seed of initialisation, order and augmentation."""
    all_labels: Flag = False
    """Give the image-level labels of old classes in incremental steps, too."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    base: StepConfig = field(default_factory=StepConfig)
    step: StepConfig = field(default_factory=lambda: StepConfig(epochs=40, lr_encoder=0.001))
    losses: LossConfig = field(default_factory=LossConfig)
    evaluate_every: Count = 5
    """Epochs between evaluations; the last epoch is always evaluated."""
    keep_best: Flag = False
    """End each step with the evaluated epoch after the warm-up whose mIoU of all classes was highest, not with the last
    one. The validation images then take part in the choice: test on others."""
    weight_merge: WeightMerge = "none"
    """ewf ends each incremental step with w times its weights plus 1 - w times those before it, w the root of the new
    classes' share of all classes (EWF); none keeps those of the step."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision; auto is bf16 on GPUs that have it, fp16 on others, fp32 on the CPU."""
    compile: Flag = False
    """Train with torch.compile. The first batches take minutes; losses differ by rounding. Not for plop."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_grad_norm: Positive | None = None
    """Clip the gradient to this norm; None leaves it. A norm that is not finite stops the run (fp16: a loss)."""

    def for_step(self, step: int) -> StepConfig:
        """How a step is trained, with its warm-up as a number."""
        settings = self.base if step == 0 or self.method == "offline" else self.step
        return replace(settings, warmup=self.warmup(step))

    def warmup(self, step: int) -> int:
        """Epochs of warm-up of a step."""
        base = step == 0 or self.method == "offline"
        given = self.base.warmup if base else self.step.warmup
        if given is not None:
            return given
        return 0 if base or self.method in get_args(MaskMethod) else WARMUP[self.recipe]
