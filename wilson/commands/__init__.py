"""The commands, a file and a dataclass each: its fields are the options; calling it does the work."""
