"""What this machine has to offer before hosts can be made of it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("ip", "tc", "unshare", "nsenter", "setsid", "env", "mount")

KINDS = ("--net", "--mount", "--uts", "--ipc", "--pid")
"""Of the namespaces that make a host."""


@functools.cache
def missing() -> str | None:
    """Why hosts cannot be made here, in a few words; None where they can."""
    if sys.platform != "linux":
        return f"hosts are Linux namespaces, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "hosts are namespaces of their own, and making them takes root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: iproute2, util-linux)"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun, which a link's delay needs"
    # A container's root may not.
    tried = subprocess.run(["unshare", *KINDS, "--fork", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() or f"unshare ended with status {tried.returncode}" if tried.returncode else None
