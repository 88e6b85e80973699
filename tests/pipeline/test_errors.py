"""How every command ends: exit codes, and one sentence in place of a traceback."""

import errno

import pytest

from pipeline.errors import RunFailed, UserError, run_command


def ending(outcome, capsys):
    def main():
        raise outcome

    with pytest.raises(SystemExit) as left:
        run_command(main)
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (UserError("no such thing"), 2, "error: no such thing\n"),
        (RunFailed("it broke"), 1, "failed: it broke\n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 1, "failed: runs/a: No space left on device.\n"),
        (KeyboardInterrupt(), 130, "interrupted: the same command goes on from here.\n"),
    ],
)
def test_each_outcome_has_its_code_and_its_sentence(outcome, code, said, capsys):
    assert ending(outcome, capsys) == (code, said)


def test_a_mistake_of_ours_keeps_its_traceback():
    def main():
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run_command(main)
