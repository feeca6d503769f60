"""Using a trained model: predictions for images, and exported files."""
