"""The one exception of this package."""


class TrainingError(Exception):
    """Something the user can put right: a recipe's field, a data set, a checkpoint.

    The message is one line that names the file or field, the value found and what was expected.
    Commands print it and exit with status 2; no traceback.
    """
