"""The one exception that the command line turns into a single line and exit status 2."""


class UserError(ValueError):
    """A mistake a user can mend; the text says what, what was expected, what was found, and the remedy."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters of it; its kind if the text is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
