"""HDF5 for other tools: the shards' own numbers in their order, the same bytes again, whole or not there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.engine import prepare
from data_prep.export import export
from data_prep.finish import finish
from pipeline.errors import UserError
from pipeline.manifest import Manifest, read_manifest
from pipeline.samples import SplitReader
from tests.conftest import command
from tests.data_prep.light_stage import write_source
from tests.data_prep.tone_stage import RECIPES


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    root = tmp_path_factory.mktemp("export")
    stage = RECIPES["tones"]
    finish(stage, prepare(stage, write_source(root / "raw"), root / "tones", 0, 0.05)[0], root / "tones")
    return read_manifest(root / "tones")


def test_every_number_in_the_shards_order(manifest, tmp_path):
    import h5py

    made = command("data_prep/export.py", manifest.folder, "--h5", tmp_path / "valid.h5")
    assert (made.returncode, made.stdout.strip()) == (0, str(tmp_path / "valid.h5")), made.stderr
    reader = SplitReader(manifest, "valid")
    with h5py.File(tmp_path / "valid.h5") as file:
        assert file["stems"].shape == (len(reader), 2, 4096)
        assert json.loads(file.attrs["info"]) == manifest.info
        assert file.attrs["identity"] == manifest.identity
        for number in range(len(reader)):
            sample = reader.sample(number)
            np.testing.assert_array_equal(file["stems"][number], sample["stems"])
            assert file["present"][number].tolist() == [True, False]
            assert file["key"][number].decode() == sample["__key__"]
            assert json.loads(file["meta"][number]) == sample["meta"]
    assert export(manifest, "valid", tmp_path / "again.h5") == len(reader)
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "valid.h5").read_bytes()


def test_whole_or_not_there(manifest, tmp_path):
    folder = Path(shutil.copytree(manifest.folder, tmp_path / "tones"))
    raw = bytearray((folder / "test-000000.tar").read_bytes())
    raw[-30000] ^= 1
    (folder / "test-000000.tar").write_bytes(raw)
    with pytest.raises(UserError, match=r"test-000000\.tar: sample .*; repair the shards"):
        export(read_manifest(folder), "test", tmp_path / "test.h5")
    with pytest.raises(UserError, match=r"nowhere/test\.h5 cannot be written: No such file or directory"):
        export(manifest, "test", tmp_path / "nowhere/test.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["tones"]
    missing = command("data_prep/export.py", tmp_path, "--h5", tmp_path / "x.h5")
    assert missing.returncode == 2
    assert "holds no prepared dataset" in missing.stderr
