"""Data sets, tasks (which classes and images belong to which step), and batches.

- `sources` holds one file per kind of data set, `opening` opens them; `files` reads images and masks, `scan` and
  `cache` remember what is in them, `names` knows the classes of VOC and COCO;
- `tasks` deals classes and images out to steps, `dataset` is one step's view of a source, `transforms` cuts images,
  `loading` makes batches;
- `check` reads a whole data set and says what is wrong with it, `export` writes one in VOC's layout.
"""
