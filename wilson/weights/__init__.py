"""Import published weights into this project's layout; tensors that do not fit exactly are refused by name.

Two layouts are known, both of networks with in-place ABN: their norm layers scale by |weight| + 1e-5, and leaky ReLU
follows. ImageNet checkpoints (`state_dict`: `mod1.conv1.weight`, ...) become a file for `--model.weights`. Step
checkpoints of the published WILSON and MiB code (`model_state`: `body.*`, `head.*`, `cls.N.*`) become the checkpoint of
a step.

`published` reads such a file, `layouts` translates its names and scales, `importing` writes the result.
"""
