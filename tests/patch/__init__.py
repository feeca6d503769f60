"""The patches of other libraries, against the libraries themselves."""
