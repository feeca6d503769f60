"""Evaluation: the predicted class of every pixel (`segment`), IoU (`metrics`), and whole data sets (`evaluate`)."""
