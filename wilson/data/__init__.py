"""Data sets, tasks (which classes and images belong to which step), and batches.

- `sources` holds one file per kind of data set, and `opening` opens them. `files` says which files are
  images and finds them by name, `images` opens images and masks, `scan` finds the classes in masks and the images that
  cannot be used, `cache` keeps what it found, `names` lists the classes of VOC and COCO.
- `tasks` assigns classes and images to steps, `dataset` is one step's view of a source, `transforms` crops images,
  `loading` makes batches.
- `check` reads a whole data set and reports what is wrong with it, `export` writes one in VOC's layout.
"""
