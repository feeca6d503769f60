"""Published weights into this project's layout; what does not fit exactly is refused by name.

Two layouts, both of networks with in-place ABN, whose norm layers scale by |weight| + 1e-5 and are followed by leaky
ReLU. ImageNet checkpoints (`state_dict`: `mod1.conv1.weight`, ...) become a file for `--model.weights`. Step
checkpoints of the published WILSON and MiB code (`model_state`: `body.*`, `head.*`, `cls.N.*`) become the checkpoint of
a step.

`published` reads such a file, `layouts` translates its names and scales, `importing` writes the result.
"""
