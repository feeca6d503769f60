"""The fused losses in code of other libraries: one call puts them in, and `undo` takes them out.

::

    from wilson import patch

    handle = patch.transformers_segformer()  # at once, for all models of the class, those that exist included
    handle.undo()

    with patch.transformers_segformer():
        ...

Losses and gradients are those of the library, up to rounding; the logits at the image's size are not made. What a fused
loss cannot serve, such as class weights, goes the library's own way, with one warning for each reason.
"""

from .mmsegmentation import mmseg
from .segmentation_models import smp
from .transformers import transformers_segformer

__all__ = ["mmseg", "smp", "transformers_segformer"]
