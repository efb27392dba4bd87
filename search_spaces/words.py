"""Lists in sentences, for people: the one wording of a list that is too long to be named whole."""

from collections.abc import Iterable

SHOWN = 5  # of what a line names


def some(things: Iterable[str], most: int = SHOWN, separator: str = ", ") -> str:
    """`a, b, c`, and of more than `most` things the first ones and how many are left: `a, b and 3 more`."""
    things = list(things)
    left = len(things) - most
    return separator.join(things[:most]) + (f" and {left:,} more" if left > 0 else "")
