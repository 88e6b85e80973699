"""What either side says of its files: lists them, hashes them, removes them. Standard library only.

The laptop runs this file on the cluster by sending its text to a Python there, and then its requests (``sync.session``), so both
sides always speak the same version and the cluster needs nothing but a Python 3.6. A reply is lines of JSON on stdout, so that
long work shows how far it is. Names of files are bytes there; here and in JSON they are text, bytes that are no UTF-8 as
surrogates. Sizes in bytes, times in ns since 1970.
"""

import fnmatch
import json
import os
import re
import stat
import sys
import time

RUN_ID = re.compile(r"[0-9a-f]{8}(-\d+)?")
HASH = "xxh3_128"  # as in all manifests; blake2b stands in for it where there is no xxhash
THREADS = max(1, min(4, os.cpu_count() or 1))  # that hash; a login node is shared
LARGE = 1 << 20  # bytes from which a file is worth a thread
CHUNK = 1 << 18  # fits a processor's cache. Not mapped: a file that shrinks while it is read would end the process


def to_bytes(name):
    return name.encode("utf-8", "surrogateescape")


def to_text(name):
    return name.decode("utf-8", "surrogateescape")


def expand(path):
    """A path as it stands in a profile, absolute: ``~``, ``$USER`` and the like filled in."""
    return os.path.abspath(os.path.expandvars(os.path.expanduser(path)))


# -- listing ----------------------------------------------------------------------------------------------------


def list_files(folder, tops=("*",)):
    """``{name: [size, mtime]}`` of the regular files below ``folder`` whose first part matches one of ``tops``.

    Left out: links, which could lead anywhere, and what is still being written (names with a dot, but for those in code/).
    """
    found: dict = {}
    _add(to_bytes(folder), "", lambda name: any(fnmatch.fnmatchcase(name, top) for top in tops), found)
    return found


def _entries(folder):
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []  # pruned while we looked


def _add(folder, above, wanted, found):
    """Note the files below ``folder``, whose names begin with ``above``; at the top those that are ``wanted``, below them all (None).

    Of tens of thousands of files the shortest way counts: no call of ours a name, and a name below an open folder instead of a path.
    """
    try:
        names = os.listdir(folder)
        handle = os.open(folder, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return  # pruned while we looked
    try:
        for name in names:
            text = name.decode("utf-8", "surrogateescape")
            if (text[0] == "." and not above.startswith("code")) or (wanted and not wanted(text)):
                continue
            try:
                facts = os.stat(name, dir_fd=handle, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(facts.st_mode):
                found[above + text] = [facts.st_size, facts.st_mtime_ns]
            elif stat.S_ISDIR(facts.st_mode):
                _add(os.path.join(folder, name), above + text + "/", None, found)
    finally:
        os.close(handle)


def digest_of(files):
    """A short word for a listing: another one where any name, size or time is another (or their order, which costs a look)."""
    import hashlib  # late: it loads OpenSSL

    return hashlib.blake2b(json.dumps(files).encode("ascii"), digest_size=16).hexdigest()


def run_names(root):
    """``name/identity`` of every run under ``root``, the one that was touched last at the end."""
    found = []
    for config in _entries(to_bytes(root)):
        if config.name.startswith(b".") or not config.is_dir():
            continue
        for run in _entries(config.path):
            if RUN_ID.fullmatch(to_text(run.name)) and os.path.isfile(os.path.join(run.path, b"config.yaml")):
                try:
                    touched = os.stat(os.path.join(run.path, b"history.jsonl")).st_mtime_ns
                except FileNotFoundError:
                    continue
                found.append((touched, to_text(config.name) + "/" + to_text(run.name)))
    return [name for _, name in sorted(found)]


def matching(names, wanted):
    """The runs that were asked for: all, the one of that name, or the newest of that config."""
    if wanted is None or wanted in names:
        return names if wanted is None else [wanted]
    return [name for name in names if name.split("/")[0] == wanted][-1:]


# -- hashing ----------------------------------------------------------------------------------------------------


def xxhash_or_none():
    """The package xxhash, or None on a bare Python. Here the installed packages are looked up: ``sync.session`` starts without them."""
    if sys.flags.no_site and "site" not in sys.modules:
        import site

        site.main()
    try:
        import xxhash
    except ImportError:
        return None
    return xxhash


def new_hash(algorithm):
    if algorithm == HASH:
        return xxhash_or_none().xxh3_128()
    import hashlib

    return hashlib.blake2b(digest_size=16)


def algorithm_here():
    return HASH if xxhash_or_none() else "blake2b"


def hash_of(path, algorithm, length=None):
    """``[size, mtime, hash]`` of a regular file, the hash over its first ``length`` bytes; None where there is no such file."""
    digest = new_hash(algorithm)
    try:
        if os.path.islink(path):
            return None
        with open(path, "rb", buffering=0) as file:
            facts = os.fstat(file.fileno())  # first: what is changed while we read has a later time
            left = sys.maxsize if length is None else length
            buffer = memoryview(bytearray(max(1, min(CHUNK, left, facts.st_size + 1))))
            while left > 0:
                count = file.readinto(buffer[: min(len(buffer), left)])
                if not count:
                    break
                digest.update(buffer[:count])
                left -= count
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return [facts.st_size, facts.st_mtime_ns, digest.hexdigest()]


def hash_all(root, files, algorithm):
    """``(name, hash_of)`` of files below ``root``, given as ``(name, length)``, in any order: large ones side by side.

    Hashing a large file leaves the interpreter to others; small ones are hashed between, for a thread each would cost more than they do.
    """
    paths = [(name, os.path.join(to_bytes(root), to_bytes(name)), length) for name, length in files]
    large = [task for task in paths if _size(task[1]) >= LARGE] if THREADS > 1 else []
    if not large:
        for name, path, length in paths:
            yield name, hash_of(path, algorithm, length)
        return
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        jobs = {name: pool.submit(hash_of, path, algorithm, length) for name, path, length in large}
        for name, path, length in paths:
            if name not in jobs:
                yield name, hash_of(path, algorithm, length)
        for name, job in jobs.items():
            yield name, job.result()


def _size(path):
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


# -- requests ---------------------------------------------------------------------------------------------------


def answer(request):
    """The lines of JSON that answer ``request``."""
    root = expand(request["root"])
    yield {"root": root, "time": time.time(), "exists": os.path.isdir(root)}
    yield from ANSWERS[request["do"]](root, request)


def _list(root, request):
    names = run_names(root)
    yield {"runs": names}
    for name in matching(names, request["run"]):
        files = list_files(os.path.join(root, name), request["tops"])
        digest = digest_of(files)
        yield {"run": name, "digest": digest, "files": None if request["known"].get(name) == digest else files}


def _hash(root, request):
    algorithm = algorithm_here()
    yield {"algorithm": algorithm}
    sys.stdout.flush()  # whoever waits for it hashes, too
    for name, facts in hash_all(root, request["files"], algorithm):
        yield {"file": name, "facts": facts}


def _read(root, request):
    try:
        with open(os.path.join(root, request["file"]), encoding="ascii") as file:
            yield {"text": file.read()}
    except FileNotFoundError:
        yield {"text": None}


def _write(root, request):
    """One small file, whole or not at all."""
    os.makedirs(root, exist_ok=True)
    path = os.path.join(root, request["file"])
    with open(path + ".writing", "w", encoding="ascii") as file:
        file.write(request["text"])
    os.replace(path + ".writing", path)
    yield {"written": request["file"]}


def _remove(root, request):
    """Remove files, and the folders below ``root`` that are empty then."""
    for name in request["files"]:
        path = os.path.join(to_bytes(root), to_bytes(name))
        yield {"file": name, "trouble": remove(path, to_bytes(root))}


def remove(path, root):
    """Remove a file and the folders up to ``root`` that are empty then; what prevented it, or None."""
    try:
        os.unlink(path)
        folder = os.path.dirname(path)
        while folder != root and not os.listdir(folder):
            os.rmdir(folder)
            folder = os.path.dirname(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror
    return None


ANSWERS = {"list": _list, "hash": _hash, "read": _read, "write": _write, "remove": _remove}


def serve():
    """Say that it is there, then answer requests, a line of JSON each, until there are no more."""
    sys.stdout.write('{"end": true}\n')
    sys.stdout.flush()
    for line in iter(sys.stdin.buffer.readline, b""):
        flushed = time.time()
        try:
            for reply in answer(json.loads(line.decode("ascii"))):
                sys.stdout.write(json.dumps(reply) + "\n")
                if time.time() > flushed + 0.2:
                    sys.stdout.flush()
                    flushed = time.time()
            end: dict = {"end": True}
        except OSError as error:
            end = {"failed": "{}: {}".format(error.filename and to_text(os.fsencode(error.filename)), error.strerror)}
        sys.stdout.write(json.dumps(end) + "\n")
        sys.stdout.flush()
