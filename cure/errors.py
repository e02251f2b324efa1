"""The one error that CURE raises for something its user can put right."""


class CureError(Exception):
    """What is wrong, where, and the command or setting that fixes it, in one message without a traceback's help."""
