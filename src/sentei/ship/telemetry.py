"""Nothing that sentei starts tells anyone that it was used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """For importing and running OpenVINO and NNCF.

    Both send usage data, OpenVINO when it is imported already, unless a file in the home directory says no or `CI` is
    "true".
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
