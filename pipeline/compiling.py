"""``trainer.compile``: torch's compiler (TorchInductor) for the parts of a network that a module names.

Part by part, because a training step is more than a network: keyed draws, transforms and collectives would break a graph of all of it.
Each part is one whole graph of fixed shapes and is compiled in place, so weights keep their names and a checkpoint knows nothing of it.
Dropout is torch's own: student and teacher, or a pass and its recomputation, must draw alike. Only training steps are compiled;
validation and samples, whose shapes vary, run as they are.

What was compiled is kept on the node, in a folder that only this user can write: it holds code that is run.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.train_module import TrainModule

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own name for where it keeps what it has compiled
VARIANTS = (
    64  # of a part: one for each shape, with and without gradients; torch would go on uncompiled, and untold, after 8
)


def compile_parts(module: TrainModule) -> None:
    """Let the parts of ``module`` be compiled when they are first called.

    Raises UserError where it has none, or where this machine has no compiler.
    """
    parts = list(module.compiled())
    if not parts:
        raise UserError(
            f"nothing of {module.config.model.system} can be compiled as it is configured: set trainer.compile=false."
        )
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"trainer.compile needs a C++ compiler, and there is no {compiler} here; load one on the nodes (often: module load gcc), "
            "name it in the environment variable CXX, or set trainer.compile=false."
        )
    os.environ.setdefault(CACHE, str(private_folder()))
    torch._dynamo.config.recompile_limit = VARIANTS
    let_compile(parts, options={"fallback_random": True})


def let_compile(parts: Sequence[nn.Module], **how: Any) -> None:
    """One function for all parts of a kind, so that alike layers are compiled once. (``nn.Module.compile`` does each anew, and passes over
    those whose ``forward`` is torch's own.)
    """
    kinds = {type(part) for part in parts}
    compiled = {kind: torch.compile(kind.forward, fullgraph=True, dynamic=False, **how) for kind in kinds}
    for part in parts:
        part.forward = MethodType(compiled[type(part)], part)


def as_it_is(compiled: bool) -> AbstractContextManager[object]:
    """Within the block nothing is compiled and nothing compiled is called."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def private_folder() -> Path:
    """This user's folder for compiled code below the node's temporary one; where somebody else has taken its name, a new one."""
    folder = Path(tempfile.gettempdir()) / f"slurmphony-compiled-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077
    return folder if ours else Path(tempfile.mkdtemp(prefix="slurmphony-compiled-"))
