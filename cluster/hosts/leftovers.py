"""What fleets of dead owners have left.

The kernel ends a fleet's processes with its owner, so this is usually a folder. A keeper stays where a process that
the owner forked still holds its input open.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import psutil

from cluster.hosts.namespaces import OWNER

FOLDER_PREFIX = "distblock-hosts-"
"""Of the folder with a fleet's token and names; the owner's process id follows."""


def clean() -> list[str]:
    """End and remove it; returns what was there, one line each."""
    removed: list[str] = []
    for process in psutil.process_iter():
        try:
            owner = process.environ().get(OWNER, "")
            if owner and not psutil.pid_exists(int(owner)):
                removed.append(f"process {process.pid} of owner {owner}")
                process.kill()
        except psutil.Error:  # another user's, or gone
            continue
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        owner = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            removed.append(f"folder {folder}")
            shutil.rmtree(folder)
    return removed
