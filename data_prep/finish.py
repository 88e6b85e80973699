"""From committed shards to a dataset: the quarantine list, the dataset card, and last of all the manifest; and proof that all is intact.

Everything here is a function of the plan and the commit records, so that it too comes out the same after any number of kills.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from data_prep.claims import leave
from data_prep.commits import WORK, Committed, done, publish, read_committed, shard_files
from data_prep.plan import PLAN_NAME, Plan
from data_prep.shards import difference, differences
from data_prep.stage import Stage
from pipeline.errors import RunFailed
from pipeline.manifest import FORMAT, MANIFEST, SPLITS, read_manifest, sealed, unsealed

QUARANTINE = "quarantine.jsonl"
CARD = "README.md"


def finish(stage: Stage, plan: Plan, folder: Path) -> list[dict[str, str]]:
    """Write quarantine list, card and manifest for fully committed shards; the quarantined inputs (input, split, reason).

    ``manifest.json`` holds what ``pipeline.manifest.read_manifest`` reads, and besides ``files`` (xxh3_128 of every other file), so
    that ``verify`` covers every byte. RunFailed where no training sample came out.
    """
    records = [_record(folder, shard.name, done(folder, shard)) for shard in plan.shards]
    samples = {split: sum(r.written.samples for r in records if r.split == split) for split in SPLITS}
    quarantined = [entry for record in records for entry in record.quarantined]
    if not samples["train"]:
        reason = f", for example {quarantined[0]['input']}: {quarantined[0]['reason']}" if quarantined else ""
        raise RunFailed(f"no training sample came out of {plan.inputs} inputs; {len(quarantined)} are bad{reason}.")
    summaries = {split: [r.summary for r in records if r.split == split] for split in SPLITS}
    info = stage.info(summaries, samples)
    small = {CARD: card(stage, plan, records, samples, summaries).encode()} | stage.pictures(summaries)
    if quarantined:
        small[QUARANTINE] = "".join(json.dumps(entry) + "\n" for entry in quarantined).encode()
    hashes = {name: xxhash.xxh3_128_hexdigest(payload) for name, payload in small.items()}
    hashes |= {f"{r.name}.json": xxhash.xxh3_128_hexdigest(r.to_json()) for r in records}
    hashes[PLAN_NAME] = xxhash.xxh3_128_hexdigest(plan.to_json())
    manifest = _manifest(plan, info, records, hashes)
    if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != manifest or unsound(folder, hashes):
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / QUARANTINE).unlink(missing_ok=True)
        for name, payload in small.items():
            publish(folder, name, payload)
        publish(folder, MANIFEST, manifest)
    leave(folder / WORK)
    return quarantined


def _record(folder: Path, name: str, record: Committed | None) -> Committed:
    if record is None:
        raise RunFailed(f"{folder / name}.json is gone or was replaced meanwhile; run the same command again.")
    return record


def _manifest(plan: Plan, info: dict[str, Any], records: list[Committed], hashes: dict[str, str]) -> bytes:
    shards = [
        {
            "name": r.name,
            "split": r.split,
            "samples": r.written.samples,
            "tar_size": r.written.tar_size,
            "tar_hash": r.written.tar_hash,
            "index_hash": r.written.index_hash,
        }
        for r in records
    ]
    tree = {
        "format": FORMAT,
        "dataset": plan.dataset,
        "recipe": plan.recipe,
        "codec": plan.codec,
        "info": info,
        "shards": shards,
        "files": hashes,
    }
    return sealed(tree)


def card(
    stage: Stage,
    plan: Plan,
    records: list[Committed],
    samples: dict[str, int],
    summaries: dict[str, list[dict[str, Any]]],
) -> str:
    """The dataset card: what lies here, how much of it, from where, and how it was made."""
    lines = [f"# {plan.recipe}" + (f" ({plan.codec})" if plan.codec else ""), ""]
    recipe = plan.recipe + (f" --codec {plan.codec}" if plan.codec else "")
    lines += [f"Made from {plan.dataset} by `python data_prep/prepare.py {plan.dataset} --recipe {recipe}`.", ""]
    lines += ["| split | inputs | quarantined | shards | samples | MB |", "|---|---|---|---|---|---|"]
    for split in SPLITS:
        of = [r for r in records if r.split == split]
        bad, size = sum(len(r.quarantined) for r in of), sum(r.written.tar_size for r in of) / 1e6
        lines.append(f"| {split} | {sum(r.inputs for r in of)} | {bad} | {len(of)} | {samples[split]} | {size:.1f} |")
    bad = sum(len(r.quarantined) for r in records)
    lines += [
        "",
        f"Quarantined inputs are listed in `{QUARANTINE}` with the reason." if bad else "No input was quarantined.",
        "",
    ]
    lines += [stage.card(summaries).rstrip(), "", "## Licence", "", plan.licence, "", "## How it was made", ""]
    lines += [f"Code version {plan.code}; settings:", "", "```json", json.dumps(plan.settings, indent=1), "```", ""]
    lines += [
        f"`{PLAN_NAME}` names every input with its hash. `prepare.py {plan.dataset} --verify` checks every byte.",
        "",
    ]
    return "\n".join(lines)


def unsound(folder: Path, hashes: dict[str, str]) -> list[str]:
    """One sentence for each of the named files that does not have its hash."""
    wrong = []
    for name, digest in hashes.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else -1
        if sentence := difference(path, size, digest):
            wrong.append(sentence)
    return wrong


def verify(folder: Path) -> tuple[int, list[str]]:
    """Read every byte: the number of files looked at, and one sentence for each that is not intact. UserError without a manifest."""
    path = folder / MANIFEST
    try:
        hashes = unsealed(path.read_bytes())["files"] if path.is_file() else {}
    except ValueError:
        return 1, [f"{MANIFEST} does not hold the bytes that were written"]
    manifest = read_manifest(folder)
    wrong = unsound(folder, hashes)
    for shard in manifest.shards:
        if (record := read_committed(folder, shard.name)) is not None:
            wrong += differences(*shard_files(folder, shard.name), record.written)
    return 1 + len(hashes) + 2 * len(manifest.shards), wrong
