"""The mask ids that are no class of a task, and how much of the background there should be."""

BACKGROUND = 0
VOID = 255  # pixels without a label
LEAST_BACKGROUND = 0.02  # share of the labelled pixels; with less, the background is hardly a class
