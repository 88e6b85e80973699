"""Pulls that begin at once: one process that has imported everything forks a child for each line it reads, and says its pid.

``forking.py PROFILES WORDS...``: the words of sync/pull.py. Every child has a process group of its own, so that all of it can be killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jobs.profiles
from pipeline.errors import run_command
from sync import pull

jobs.profiles.PROFILES = Path(sys.argv[1])
words = sys.argv[2:]
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        print("began", file=sys.stderr, flush=True)
        run_command(lambda: pull.main(words))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
