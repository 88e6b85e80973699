"""Make `.venv` for the demo, for everything, or for benchmarks too: `python3 jobs/setup_env.py demo|all|bench`. `make` calls this.

Standard library only, and old syntax on purpose: it must be able to tell a Python that is too old that it is.
Harmless when repeated: nothing is done where the environment already is what constraints and pyproject ask for.
"""

import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
OLDEST = (3, 11)
EXTRAS = {  # each holds those before it
    "demo": "",
    "all": "[dashboard,codecs,cluster,dev]",
    "bench": "[dashboard,codecs,cluster,dev,bench]",
}


def give_up(sentence):
    sys.stderr.write("error: " + sentence + "\n")
    sys.exit(2)


def suitable_python():
    """This interpreter if it is new enough, else a newer one on the PATH."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in (13, 12, 11):
        found = shutil.which("python3.%d" % minor)
        if found:
            return found
    give_up(
        "Python %d.%d or newer is needed and none is on the PATH (this is %d.%d); install python3.11 and type the same again."
        % (OLDEST + sys.version_info[:2])
    )


def make_venv(python):
    probe = subprocess.run(
        [python, "-c", "import venv, ensurepip"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if probe.returncode:
        give_up(
            "this Python has no venv module; on Debian and Ubuntu: sudo apt install python3-venv, then type the same again."
        )
    if subprocess.run([python, "-m", "venv", VENV]).returncode:
        give_up("%s could not be made (see above); remove it and type the same again." % VENV)


def fingerprint(target):
    digest = hashlib.sha256(target.encode() + sys.version.encode())
    for name in ("constraints.txt", "pyproject.toml", os.path.join("jobs", "setup_env.py")):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def pip(python, *words):
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "-c",
        os.path.join(ROOT, "constraints.txt"),
    ]
    if subprocess.run(command + list(words), stdout=subprocess.DEVNULL if "-q" in words else None).returncode:
        give_up(
            "an install failed (see above); if the network was away, type the same again: it goes on where it stopped."
        )


def free_torchaudio_from_cuda(python):
    """torchaudio's wheel is linked against CUDA; beside a CPU torch its compiled part must not be loaded, the rest is pure Python."""
    code = (
        "import importlib.util as u, pathlib, torch\n"
        "if torch.version.cuda is None:\n"
        "    lib = pathlib.Path(u.find_spec('torchaudio').submodule_search_locations[0]) / 'lib'\n"
        "    if lib.is_dir():\n"
        "        lib.rename(lib.with_name('lib.needs-cuda'))\n"
        "        print('torchaudio: its CUDA extension is set aside, because this torch has no CUDA')\n"
        "import torchaudio\n"
    )
    if subprocess.run([python, "-c", code]).returncode:
        give_up("torch and torchaudio were installed but do not import together (see above).")


def main():
    target = sys.argv[1] if len(sys.argv) == 2 else ""
    if target not in EXTRAS:
        give_up("say which environment: python3 jobs/setup_env.py demo, all or bench")
    python = os.path.join(VENV, "bin", "python")
    marker = os.path.join(VENV, "made-for-%s")
    for made in list(EXTRAS)[list(EXTRAS).index(target) :]:  # what was made for everything serves the demo, too
        path = marker % made
        if os.path.exists(path):
            with open(path) as file:
                if file.read() == fingerprint(made):
                    return
    if not os.path.exists(python):
        make_venv(suitable_python())
    print("installing into .venv (once; a few minutes)...", flush=True)
    pip(python, "-q", "torch")  # first and alone: nothing else may choose its build
    pip(python, "-q", "-e", ROOT + EXTRAS[target])
    pip(python, "-q", "--no-deps", "tinysoundfont")  # it declares PyAudio, which needs system headers and is not used
    free_torchaudio_from_cuda(python)
    with open(marker % target, "w") as file:
        file.write(fingerprint(target))
    print("done. Before typing commands: source .venv/bin/activate", flush=True)


if __name__ == "__main__":
    main()
