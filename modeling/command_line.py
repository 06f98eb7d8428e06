"""Parsers of command lines whose help gives the defaults."""

import argparse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines, and adds the default of each option that has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_one = isinstance(action.default, str | float | int) and action.default is not False
        return super()._get_help_string(action) if has_one and "(default" not in action.help else action.help


def command_parser(description: str, module: str | None = None) -> argparse.ArgumentParser:
    """A parser for a script, or for a module that `python -m` runs."""
    prog = f"python -m {module}" if module else None
    return argparse.ArgumentParser(prog=prog, description=description, formatter_class=HelpFormatter)
