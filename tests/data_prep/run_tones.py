"""``python run_tones.py DATASET ...``: prepare.py with the dataset ``tones`` beside the real ones."""

from data_prep import prepare
from pipeline.errors import run_command

if __name__ == "__main__":
    prepare.DATASETS["tones"] = "tests.data_prep.tone_stage"
    run_command(prepare.main)
