"""Colours of classes, and pictures of what a model sees."""
