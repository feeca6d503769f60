"""A local page to try a model and to add a class, for people who would rather look."""
