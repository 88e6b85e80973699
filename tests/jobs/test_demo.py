"""What `make demo` says at its end: the figures, and commands that can be typed."""

from jobs.demo import SHOWN, summary


def test_the_next_commands_name_this_run(tmp_path, capsys):
    folder = tmp_path / "runs" / "dismix_demo" / "0123abcd"
    out = folder / "samples" / "swap"
    out.mkdir(parents=True)
    (out / "after.wav").touch()
    summary(folder, out, {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in SHOWN}, 60.0)
    said = capsys.readouterr().out
    assert "launch.py --resume dismix_demo/0123abcd --cluster local" in said
    assert "generate.py dismix_demo/0123abcd --sample" in said
    assert said.count("50.0 %   (40.0 .. 60.0)") == len(SHOWN) and "samples/swap/after.wav" in said
