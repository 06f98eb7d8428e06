"""What the benchmarks' command lines share."""

import argparse
from collections.abc import Callable


def at_least(minimum: int) -> Callable[[str], int]:
    """The `type` of an argument that takes whole numbers from `minimum` on."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {minimum} on")
        return number

    return whole_number
