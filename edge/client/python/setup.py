"""Takes libupdraft_client.so along when it is built (UPDRAFT_CLIENT_LIBRARY, or build/lib of the source tree); without it the
installed package looks for the library in the system's own places."""

import os
import pathlib
import shutil

from setuptools import setup

HERE = pathlib.Path(__file__).resolve().parent
PACKAGED = HERE / "updraft/libupdraft_client.so.1"

built = pathlib.Path(os.environ.get("UPDRAFT_CLIENT_LIBRARY", HERE.parents[2] / "build/lib/libupdraft_client.so.1"))
if built.exists():
    shutil.copy(built, PACKAGED)
try:
    setup()
finally:
    PACKAGED.unlink(missing_ok=True)
