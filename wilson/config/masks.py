"""The mask ids that are no class of a task."""

BACKGROUND = 0
VOID = 255  # pixels without a label
