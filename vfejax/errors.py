"""The one exception that a command turns into one line on the terminal and a non-zero exit
status.
"""

__all__ = ["UserError"]


class UserError(Exception):
    """Something the user can fix: its message is one line that names what is wrong and a remedy."""
