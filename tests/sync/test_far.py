"""The program that travels: it must run on the Python of a login node, whatever that is."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from sync import far


def test_it_is_python_3_6_and_the_standard_library():
    tree = ast.parse(Path(far.__file__).read_text(), feature_version=(3, 6))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported - {"xxhash"} <= sys.stdlib_module_names and not any(
        isinstance(node, ast.ImportFrom) for node in ast.walk(tree)
    )
    newer = {"removeprefix", "removesuffix", "file_digest", "capture_output"}
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & newer


def test_names_travel_whatever_the_locale(tmp_path):
    (tmp_path / "naïve 音\n.txt").write_text("x")
    request = json.dumps({"do": "hash", "root": str(tmp_path), "files": [["naïve 音\n.txt", None]]})
    done = subprocess.run(
        [sys.executable, "-c", f"{Path(far.__file__).read_text()}\nserve()"],
        input=request.encode(),
        env={"LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
    )
    facts = [json.loads(line) for line in done.stdout.splitlines()][-2]
    assert facts["file"] == "naïve 音\n.txt" and facts["facts"][0] == 1, done.stderr


def test_a_prefix_is_hashed_as_the_file_was_then(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"0123")
    for algorithm in ("xxh3_128", "blake2b"):
        assert far.hash_of(tmp_path / "a", algorithm, 4)[2] == far.hash_of(tmp_path / "b", algorithm)[2]
    assert far.hash_of(tmp_path / "none", "blake2b") is None and far.hash_of(tmp_path, "blake2b") is None
