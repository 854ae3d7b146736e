"""The exceptions for mistakes that a user can mend."""


class UserError(Exception):
    """Bad input. Its message is one clear line: what was expected, what came, and the flag or file to change.

    Commands print it without a traceback and exit with code 2.
    """


class ExampleError(UserError):
    """One example cannot be used as the config asks. A data stream leaves it out and counts it, up to a limit."""
