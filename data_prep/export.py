"""One split of a prepared dataset as a single HDF5 file, for looking at it with other tools.

    python data_prep/export.py FOLDER --h5 FILE [--split valid]

Training never reads HDF5: in shards a sample is one checked read at a known place, and a flipped bit is found. HDF5 serves better where one
wants an array across samples, as one does when looking at a validation set: ``file["stems_latent"][:, 0, :8]`` is the lowest bands
of every first stem, in NumPy, MATLAB or Julia.

The file holds one dataset for every array of the samples, (N, *shape) in the shards' order; ``key`` and every JSON field as strings;
and, as attributes, the manifest's ``info`` (JSON) and ``identity``. The same shards give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError, run_command
from pipeline.files import fsync_folder
from pipeline.manifest import SPLITS, Manifest, read_manifest
from pipeline.samples import SplitReader
from pipeline.shards import DamagedSample

if TYPE_CHECKING:
    import h5py


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python data_prep/export.py", description="One split of a prepared dataset as an HDF5 file."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="prepared shards")
    parser.add_argument("--h5", metavar="FILE", type=Path, required=True, help="the file to write")
    parser.add_argument("--split", choices=SPLITS, default="valid")
    args = parser.parse_args()
    count = export(read_manifest(args.folder), args.split, args.h5)
    print(f"{count} samples.", file=sys.stderr)
    print(args.h5)


def export(manifest: Manifest, split: str, path: Path) -> int:
    """Write ``path`` whole, aside and renamed; the number of samples. UserError for an empty split, a damaged sample, no such folder."""
    try:
        import h5py
    except ImportError:
        raise UserError("h5py is not installed; type: make setup") from None
    reader = SplitReader(manifest, split)
    if not len(reader):
        raise UserError(f"{manifest.folder} has no samples in {split}.")
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.touch()  # tells in plain words what HDF5 would tell in its own
        with h5py.File(aside, "w") as file:
            file.attrs["info"] = json.dumps(manifest.info, sort_keys=True)
            file.attrs["identity"] = manifest.identity
            _write(file, reader)
        with aside.open("rb+") as written:
            os.fsync(written.fileno())
        aside.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    except DamagedSample as error:
        raise UserError(f"{error}; repair the shards with the command that made them, then export again.") from error
    finally:
        aside.unlink(missing_ok=True)
        reader.close()
    return len(reader)


def _write(file: h5py.File, reader: SplitReader) -> None:
    import h5py

    for number in range(len(reader)):
        sample = reader.sample(number)
        values = {"key": sample.pop("__key__"), **sample}
        for name, value in values.items():
            if not number:
                kind, shape = (value.dtype, value.shape) if isinstance(value, np.ndarray) else (h5py.string_dtype(), ())
                file.create_dataset(name, (len(reader), *shape), kind, chunks=(1, *shape), track_times=False)
            file[name][number] = _plain(value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (np.ndarray, str)) else json.dumps(value, sort_keys=True)


if __name__ == "__main__":
    run_command(main)
