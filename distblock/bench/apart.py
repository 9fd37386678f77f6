"""``python -m distblock.bench.apart KIND SETTINGS`` measures distblock once, in that process, and prints JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from distblock.bench.workers import MEASURES, Settings

if __name__ == "__main__":
    print(json.dumps(asdict(MEASURES[sys.argv[1]](Settings(**json.loads(sys.argv[2]))))))
