"""How good a model is: its class of every pixel (`segment`), IoU (`metrics`), both over a data set (`evaluate`)."""
