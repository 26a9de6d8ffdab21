"""The one exception that means: the user's input is wrong, and one line says how."""


class InputError(ValueError):
    """Wrong input from the user: a path, a file, a prompt, a setting. The message is one line.

    The command line prints the message alone, without a stack trace, and exits with code 2. Errors in the
    use of the Python functions stay plain ValueError and TypeError.
    """
