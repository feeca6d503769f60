"""Use a trained model: predict masks of images, and export the model to a file."""
