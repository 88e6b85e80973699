"""Who may import whom, and what must never be on a path; read from the source, not from a running program."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("jobs", "pipeline", "models", "data_prep", "sync", "monitoring")
SHARED_MODELS = {
    f"models.{name}" for name in ("blocks", "codecs", "features", "losses", "metrics", "inputs", "showing", "windows")
}
LOGIN_NODE = [
    "jobs.launch",
    "jobs.slurm",
    "jobs.prepare_slurm",
    "jobs.cancel",
    "jobs.export",
    "pipeline.runs",
    "sync.push",
    "sync.pull",
    "sync.verify",
    "monitoring.dashboard",
    "monitoring.status",
    "monitoring.why",
    "monitoring.report",
    "monitoring.compare",
    "monitoring.compare_server",
    "data_prep.prepare",
    "data_prep.demo",
    "data_prep.latents",
    "data_prep.fetch_weights",
]
FOR_SYNC = {f"pipeline.{name}" for name in ("errors", "files", "manifest", "progress", "runs")}
FOR_SYNC |= {"jobs.clusters", "jobs.profiles", "jobs.snapshot"}
FOR_PREPARATION = {"models.codecs", "models.features", "models.blocks.console"}
QUEUES_JOBS = {"data_prep/prepare.py": {"jobs.prepare_slurm"}}  # the command, and nothing of what the jobs run


def sources():
    return [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every dotted name a file imports, late imports included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {n for n in names if n.split(".")[0] in FOLDERS}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(f"{a}.") or a.startswith(f"{name}.") for a in allowed)


def allowed(path: Path) -> set[str]:
    folder, *rest = path.relative_to(ROOT).parts
    match folder:
        case "jobs":
            return set(FOLDERS)
        case "pipeline":
            return {"pipeline"}
        case "models":
            own = {f"models.{rest[0]}"} if len(rest) > 1 else {"models"}
            return {"pipeline"} | SHARED_MODELS | own
        case "data_prep":
            return {"pipeline", "data_prep"} | FOR_PREPARATION | QUEUES_JOBS.get("/".join([folder, *rest]), set())
        case "monitoring":
            return {"pipeline", "monitoring"}
        case "sync":
            return {"sync"} | FOR_SYNC
    raise AssertionError(folder)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_architecture(path):
    forbidden = sorted(name for name in imports(path) if not within(name, allowed(path)))
    assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}; see ARCHITECTURE.md"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_module_hides_the_standard_library(folder):
    """A script's own folder comes first on its path."""
    names = {p.stem for p in (ROOT / folder).glob("*.py")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", LOGIN_NODE)
def test_login_node_paths_never_import_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_nothing_unpickles_or_builds_shell_strings():
    for path in sources():
        text = path.read_text()
        for word in ("import pickle", "allow_pickle=True", "weights_only=False", "shell=True", "os.system("):
            assert word not in text, f"{path}: {word}"


def test_no_exception_is_swallowed_in_silence():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
                pytest.fail(f"{path}:{node.lineno} swallows an exception")


def test_fabric_has_one_door_that_leaves_the_rest_of_lightning_whole():
    door = ROOT / "pipeline" / "fabric.py"
    elsewhere = [p for p in sources() if p != door and re.search(r"^\s*(from|import) lightning", p.read_text(), re.M)]
    assert not elsewhere, "import it from pipeline.fabric"
    program = (
        "import sys, pipeline.fabric; assert 'torchmetrics' not in sys.modules and 'lightning.pytorch' not in sys.modules\n"
        "import torchmetrics, lightning; torchmetrics.Metric, lightning.Trainer\n"
        "assert lightning.Fabric is pipeline.fabric.Fabric"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_no_two_test_files_have_one_name():
    """pytest takes them for one module, and leaves one of them out."""
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_the_readme_shows_every_module_where_it_lies():
    """By its name, or by a pattern such as ``demo_*.py``; models' systems are folders with a README each."""
    tree = (ROOT / "README.md").read_text()
    for folder in FOLDERS:
        begin = tree.index(f"\n    {folder}/")
        part = re.split(r"\n    \S", tree[begin + 1 :], maxsplit=1)[0]
        shown = re.findall(r"[\w*/]+\.py", part)
        hidden = [
            path.name
            for path in sorted((ROOT / folder).glob("*.py"))
            if path.name != "__init__.py" and not any(fnmatch(path.name, pattern) for pattern in shown)
        ]
        assert not hidden, f"the tree in README.md lacks in {folder}/: {', '.join(hidden)}"
