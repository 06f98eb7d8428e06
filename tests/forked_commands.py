"""Commands in forks of a process that has the libraries imported.

Imports take most of a short command's time. A fork has them behind it, and leaves nothing to the next one.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class ForkedCommands:
    """The process, while the `with` block lasts; it has the variables of `environment` from the start.

    It imports `modules`, from `place` where they are there, which is the folder that commands run in, too.

    Libraries keep what HF_HOME is when they are imported. Here it is a link, which each command has lead to a home of
    its own.
    """

    def __init__(self, folder: Path, environment: dict[str, str], modules: list[str], place: Path = ROOT):
        self.folder, self.modules, self.place = folder, modules, place
        self.home = Path(environment["HF_HOME"])
        self.environment = os.environ | environment

    def __enter__(self) -> "ForkedCommands":
        self.lead_home_to(self.folder / "nobody")
        self.process = subprocess.Popen(
            [sys.executable, __file__, *self.modules],
            cwd=self.place,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exception) -> None:
        self.process.communicate()

    def lead_home_to(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.home.unlink(missing_ok=True)
        self.home.symlink_to(folder)

    def run(
        self, arguments: list[str], home: Path, environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess:
        """Run what `python *arguments` runs, a script, `-m` and a module, or `-c` and code; output is text.

        Args:
            environment: variables that are read later than at import.
            timeout: in seconds, after which this and all later commands fail.
        """
        self.lead_home_to(home)
        outputs = [self.folder / name for name in ("stdout", "stderr")]
        request = {"arguments": arguments, "environment": environment, "outputs": list(map(str, outputs))}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                os.killpg(self.process.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(arguments, timeout, *(output.read_bytes() for output in outputs))
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, *(output.read_text() for output in outputs))


def serve() -> None:
    """Fork for each line of standard input, and print how the fork ended."""
    sys.path[0] = str(Path.cwd())
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # or each fork, as it ends, looks through all there is, and so copies it
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return execute(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def execute(arguments: list[str], environment: dict[str, str], outputs: list[str]) -> None:
    """Be the command from here on."""
    for number, path in enumerate([os.devnull, *outputs]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.environ |= environment
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve()
