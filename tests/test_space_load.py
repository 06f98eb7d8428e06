"""benchmarks/space_load.py: a few requests to a real server, and what it makes of times and memory."""

import re
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from benchmarks.space_load import Answer, Visitor, growth, main, overtaken, report

pytest_plugins = ["app_fixtures"]


def answer(sent: float, answered: float) -> Answer:
    return Answer(client=0, kind="slice", sent=sent, answered=answered, places=(), fault=None, memory=None)


def test_a_request_is_overtaken_by_one_that_was_sent_clearly_later():
    assert overtaken([answer(0, 5), answer(1, 6), answer(2, 7)]) == 0
    assert overtaken([answer(0, 5), answer(0.1, 4)]) == 0, "sent at about the same time"
    assert overtaken([answer(0, 5), answer(1, 4), answer(2, 3)]) == 2


def test_growth_is_the_slope_for_a_hundred_requests():
    memory = 500 + 0.25 * np.arange(80) + np.tile([30, -30, -30, 30], 20)
    assert growth(list(memory)) == pytest.approx(25, abs=1)


def test_a_server_that_has_ended_holds_no_memory(server, capsys):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    visitor = Visitor(0, server[0], {}, None, process.pid)
    memory = [visitor.memory()]
    assert memory[0] > 0
    process.kill()
    while visitor.process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert visitor.memory() is None, "not 0"
    process.wait()
    memory.append(visitor.memory())
    assert memory[1] is None
    report([Answer(0, "slice", 0, 1, (), "ConnectError", held) for held in memory], clients=1)
    assert "Memory: unknown" in capsys.readouterr().out


def test_the_script_starts_the_app_and_follows_it(models, monkeypatch, capsys):
    monkeypatch.setenv("MODEL_IDS", models["tiny-a"])
    small = ["--size", "64", "--num_slices", "4", "--repeats", "1", "--requests", "15", "--clients", "3"]
    assert main([*small, "--model", "tiny-a", "--volume_every", "4"]) == 0
    text = capsys.readouterr().out
    assert "15 requests from 3 clients at once, 0 of them refused" in text
    assert "A slice, waiting included (12)" in text
    assert "A volume, waiting included (3)" in text
    assert re.search(r"Told that others are before them: [1-9]", text), text
    assert re.search(r"Overtaken by a later request: \d+;", text)
    assert all(float(value) > 100 for value in re.findall(r"(\d+) after", text)), "a server with PyTorch in it"
    assert re.search(r"growth [+-]\d", text)


def test_too_few_requests_for_the_clients_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--requests", "5", "--clients", "4"])
    assert "at least five for each of the 4 clients" in capsys.readouterr().err
