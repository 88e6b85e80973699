"""``python run_light.py SOURCE OUT WORKERS``: prepares a light dataset as prepare.py does a real one."""

import sys
from pathlib import Path

from data_prep.engine import prepare
from data_prep.finish import finish
from pipeline.errors import run_command
from tests.data_prep.light_stage import LightStage


def main() -> None:
    source, folder, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    stage = LightStage("light", 3)
    plan, _ = prepare(stage, source, folder, workers, 0.05)
    finish(stage, plan, folder)


if __name__ == "__main__":
    run_command(main)
