"""What this machine has to offer before a host can be made of it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

TOOLS = ("ip", "tc", "unshare", "nsenter", "setsid", "mount")


def missing() -> str | None:
    """Why hosts cannot be made here, in a few words; None where they can."""
    if sys.platform != "linux":
        return f"hosts are Linux namespaces, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: iproute2, util-linux)"
    return None if Path("/dev/net/tun").exists() else "there is no /dev/net/tun, which delay needs"
