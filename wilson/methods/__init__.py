"""What a step optimises. A method maps a batch to its named loss terms; it knows nothing of files or devices.

Subclasses of `WeaklySupervised` learn from image-level labels. The other methods set `pixel_supervised` and learn from
the masks of the step, in which old classes are background. Only `joint` and `offline` see all masks: joint learns at
each step the classes seen so far, starting from the model before it; offline learns all classes at once.
"""

from .base import Method, Settings
from .cam import Cam
from .eps import Eps
from .finetune import Finetune
from .finetune_pixel import FinetunePixel
from .ilt import Ilt
from .lwf import Lwf
from .lwf_mc import LwfMc
from .mib import Mib
from .plop import Plop
from .rasp import Rasp
from .sdr import Sdr
from .seam import Seam
from .ss import SingleStage
from .supervised import Supervised
from .two_stage import TwoStage
from .wilson import Wilson

METHODS: dict[str, type[Method]] = {
    "wilson": Wilson,
    "rasp": Rasp,
    "finetune": Finetune,
    "cam": Cam,
    "ss": SingleStage,
    "eps": Eps,
    "seam": Seam,
    "finetune-pixel": FinetunePixel,
    "lwf": Lwf,
    "lwf-mc": LwfMc,
    "ilt": Ilt,
    "mib": Mib,
    "sdr": Sdr,
    "plop": Plop,
    "joint": Supervised,
    "offline": Supervised,
}

__all__ = [
    "METHODS",
    "Cam",
    "Eps",
    "Finetune",
    "FinetunePixel",
    "Ilt",
    "Lwf",
    "LwfMc",
    "Method",
    "Mib",
    "Plop",
    "Rasp",
    "Sdr",
    "Seam",
    "Settings",
    "SingleStage",
    "Supervised",
    "TwoStage",
    "Wilson",
]
