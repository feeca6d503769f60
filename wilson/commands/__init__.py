"""The commands: one file and one dataclass each. Its fields are the options; calling it runs the command."""
