"""Parsers of command lines whose help gives the defaults, and types of arguments."""

import argparse
from collections.abc import Callable


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines, and adds the default of each option that has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_one = isinstance(action.default, str | float | int) and action.default is not False
        return super()._get_help_string(action) if has_one and "(default" not in action.help else action.help


def command_parser(description: str, module: str | None = None) -> argparse.ArgumentParser:
    """A parser for a script, or for a module that `python -m` runs."""
    prog = f"python -m {module}" if module else None
    return argparse.ArgumentParser(prog=prog, description=description, formatter_class=HelpFormatter)


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """The `type` of an argument that takes whole numbers from `minimum` on, up to `maximum` where there is one."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < minimum or (maximum is not None and number > maximum):
            end = "on" if maximum is None else f"to {maximum}"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {minimum} {end}")
        return number

    return read
