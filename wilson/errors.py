"""The one exception the command line turns into a single line and exit status 2."""


class UserError(ValueError):
    """A mistake a user can mend; the text says what, what was expected, what was found, and the remedy."""
