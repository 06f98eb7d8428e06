"""A script as two processes that share its work, forks of this one: `python tests/as_two_processes.py SCRIPT ...`.

What `accelerate launch` does, without two more imports of everything and without a port to meet at.
"""

import runpy
import sys
from pathlib import Path

from accelerate import debug_launcher

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does
    debug_launcher(runpy.run_path, (sys.argv[0], None, "__main__"))
