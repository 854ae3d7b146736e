"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """Bad input. Its message is one clear line: what was expected, what came, and the flag or file to change.

    Commands print it without a traceback and exit with code 2.
    """
