"""The help of commands."""

import re

import pytest

import train
from modeling.command_line import command_parser


def test_help_gives_defaults_where_there_are_some_and_keeps_the_lines_of_the_description():
    parser = command_parser("First line.\n\n    python example.py\n", "examples.example")
    parser.add_argument("--patience", type=int, default=0, help="epochs")
    parser.add_argument("--name", default="anna", help="of the patient")
    parser.add_argument("--ratio", default=0.5, help="half (default: a half)")
    parser.add_argument("--only", nargs="+", default=["a", "b"], help="these")
    parser.add_argument("--figure", help="of all")
    parser.add_argument("--resume", action="store_true", help="go on")
    text = parser.format_help()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert text.startswith("usage: python -m examples.example [-h]")
    assert "    python example.py\n" in text
    assert "--patience PATIENCE epochs (default: 0)" in lines
    assert "--name NAME of the patient (default: anna)" in lines
    assert "--ratio RATIO half (default: a half)" in lines
    assert "--figure FIGURE of all" in lines
    assert "--resume go on" in lines
    assert text.count("(default") == 3


def test_training_tells_the_default_of_each_number(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    arguments = vars(train.parse_args(["--model", "unet-5level", "--dataset", "a", "--output_dir", "b"], ""))
    numbers = {name: value for name, value in arguments.items() if type(value) in (int, float)}
    assert len(numbers) > 15
    for name, value in numbers.items():
        option = re.search(rf"^  --{name} .*?(?=^  --|^$)", text, re.MULTILINE | re.DOTALL).group()
        assert f"(default: {value})" in " ".join(option.split())
