"""Runs a server that ends with whoever started it: `python -m sentei.ship.watched MODULE:FUNCTION ARGUMENT…`.

Its standard input is a pipe that the other process holds and never writes to. When that process ends in whatever way,
killed too, the system closes the pipe, and this one leaves at once. It works where there are pipes.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading


def _leave_when_alone() -> None:
    while os.read(0, 1 << 12):
        pass
    os._exit(0)


def main() -> None:
    """Calls the function, with the arguments as its command line."""
    threading.Thread(target=_leave_when_alone, daemon=True).start()
    place, _, function = sys.argv[1].partition(":")
    sys.argv = [place, *sys.argv[2:]]
    getattr(importlib.import_module(place), function)()


if __name__ == "__main__":
    main()
