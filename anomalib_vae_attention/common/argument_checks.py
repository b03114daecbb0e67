"""Checks of arguments, whose errors name the argument and say what there is."""

import math
from collections.abc import Sequence


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise a ``ValueError`` unless a value is one of some choices."""
    if value not in choices:
        msg = f"{name} must be one of {list(choices)}, but is {value!r}."
        raise ValueError(msg)


def require_whole(name: str, value: object, least: int) -> None:
    """Raise a ``ValueError`` unless a value is a whole number of at least some size."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        words = f"{least} or more" if least == 0 else f"at least {least}"
        msg = f"{name} must be {words}, and a whole number, but is {value!r}."
        raise ValueError(msg)


def require_positive(name: str, value: object) -> None:
    """Raise a ``ValueError`` unless a value is a finite number greater than 0."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        msg = f"{name} must be a number greater than 0, but is {value!r}."
        raise ValueError(msg)


def require_texts(name: str, values: object) -> None:
    """Raise a ``ValueError`` unless values are a sequence of texts."""
    if not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        msg = f"{name} must be given by name, but is {values!r}."
        raise ValueError(msg)
