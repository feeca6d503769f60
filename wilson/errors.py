"""The exception for mistakes that a user can fix; the command line prints its text and exits with status 2."""


class UserError(ValueError):
    """A mistake that a user can fix; the text says what is wrong, what was expected, what was found, and the remedy."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut to 200 characters; the name of its type if the text is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
