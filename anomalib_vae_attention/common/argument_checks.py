"""Checks of arguments, whose errors name the argument and say what there is."""

import argparse
import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def require_choice(name: str, value: object, choices: Sequence[object]) -> None:
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


def require_wholes(name: str, values: object, least: int, count: int | None = None) -> None:
    """Raise a ``ValueError`` unless values are whole numbers of at least some size: so many, or one or more."""
    given = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    if not given or len(given) != (count or len(given)):
        msg = f"{name} must be {count or 'one or more'} whole numbers, but is {values!r}."
        raise ValueError(msg)
    for value in given:
        require_whole(f"each of {name}", value, least)


def require_number(name: str, value: object, *, above: float = -math.inf, least: float = -math.inf) -> None:
    """Raise a ``ValueError`` unless a value is a finite number above one bound and not below the other."""
    if not isinstance(value, int | float) or not above < value < math.inf or value < least:
        words = f", {least:g} or more" if least > above else f" greater than {above:g}"
        msg = f"{name} must be a number{words}, but is {value!r}."
        raise ValueError(msg)


def require_share(name: str, value: float) -> None:
    """Raise a ``ValueError`` unless a value is a share of a whole: above 0 and below 1."""
    if not 0 < value < 1:
        msg = f"{name} must be between 0 and 1, such as 0.01 for 1 %, but is {value}."
        raise ValueError(msg)


def require_texts(name: str, values: object) -> None:
    """Raise a ``ValueError`` unless values are a text or a sequence of texts."""
    if not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        msg = f"{name} must be given by name, but is {values!r}."
        raise ValueError(msg)


def optional(check: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    """Return a check that takes ``None``, too."""

    def check_unless_none(name: str, value: object) -> None:
        if value is not None:
            check(name, value)

    return check_unless_none


def command_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Make the parser of a subcommand of ``vae-attention``, whose epilog keeps its lines."""
    return argparse.ArgumentParser(
        f"vae-attention {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Ask whether the nearest of some known names was meant; an empty text if none is as near as ``cutoff`` of 1."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def take_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take ``KEY=VALUE`` out of arguments, wherever it stands: an option with a list of values would swallow it.

    Returns:
        The overrides, and the other arguments.
    """
    overrides = [argument for argument in arguments if re.match(r"[A-Za-z_][\w.]*=", argument)]
    return overrides, [argument for argument in arguments if argument not in overrides]
