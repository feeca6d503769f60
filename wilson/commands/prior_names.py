"""The command prior names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PriorNames:
    """Write how near the names of classes are, for the method rasp, from sentence embeddings."""

    out: Path
    """File to write, .npz."""
    root: str = "data/voc"
    """Folder in the layout of VOC or COCO, or synthetic for the built-in data set, whose classes are compared."""
    split: str = "train_aug"
    """Name of a list of the data set (COCO: train2017, built-in data set: train)."""
    model: Path | None = None
    """Folder of a sentence model, as sentence-transformers keeps it or with model.onnx and tokenizer.json."""
    vectors: Path | None = None
    """Instead of a model, a .npz with classes, names, and vectors, one for each and for the background."""

    def __call__(self) -> int:
        from wilson.data.opening import open_source
        from wilson.data.similarity import write_similarity
        from wilson.errors import UserError
        from wilson.priors.names import embed, read_vectors, sentences, similarity

        if (self.model is None) == (self.vectors is None):
            raise UserError("give either --model, a folder of a sentence model, or --vectors, a file of vectors")
        names = open_source(self.root, self.split).classes
        if self.vectors is not None:
            found = read_vectors(self.vectors, names)
        else:
            assert self.model is not None
            found = embed(self.model, sentences(names))
        write_similarity(self.out, names, similarity(found))
        print(self.out)
        return 0
