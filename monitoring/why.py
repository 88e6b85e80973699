"""What a run died of: ``python monitoring/why.py RUN`` says what happened, on which rank and node first, and what to do.

Reads the run's history, every rank's log, the stacks of a hang, and SLURM's accounting where there is one. Changes nothing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from monitoring.causes import ALONE, Cause, cause_of
from monitoring.evidence import Evidence, Word, gather, stuck_ranks
from monitoring.flight import PICKLES, lagging, pickles
from pipeline.config import read_yaml
from pipeline.errors import run_command
from pipeline.runs import RunFolder, find_run, runs_root

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Verdict:
    """The answer. ``cause``: a name of the catalogue, "" where nothing went wrong; ``said``: the words that it was known by, and where."""

    run: str
    state: str
    cause: str = ""
    what: str = ""
    do: str = ""
    rank: int | None = None
    node: str = ""
    at: float | None = None
    said: str = ""
    source: str = ""
    also: list[str] = field(default_factory=list)


def judge(run: RunFolder) -> Verdict:
    """Why the newest attempt at ``run`` ended; of a run that is complete, or trains, that nothing is wrong."""
    evidence = gather(run)
    last = next((e for e in reversed(evidence.history) if e["event"] in ("end", "attempt")), None)
    if last and last["event"] == "end" and last.get("reason") == "complete":
        return Verdict(run.name, f"complete at step {last.get('step')}", also=_warnings(evidence))
    if run.writer():
        return Verdict(run.name, "it is being trained now", also=_warnings(evidence))
    if not evidence.attempts and not evidence.words:
        return Verdict(run.name, "it has not begun yet")
    state = _state(evidence)
    found = [(word, cause) for word in evidence.words if (cause := cause_of(word.text)) is not None]
    if not found:
        return _verdict(evidence, state, Word(evidence.history[-1]["time"], "", "history"), ALONE, [])
    word, cause = min(found, key=lambda pair: _order(*pair))
    also = list(
        dict.fromkeys(c.what.format(**_facts(evidence, w, c)) for w, c in found if c.name != cause.name and not c.echo)
    )
    return _verdict(evidence, state, word, cause, also)


def _order(word: Word, cause: Cause) -> tuple[int, float]:
    """What is evidence comes before what only says that something ended, and the earliest first."""
    general = ("user_error", "exception", "killed", "no_progress")
    weight = 3 if cause.echo else 2 if cause.name in general else 1 if cause.ours else 0
    return weight, word.at


def _state(evidence: Evidence) -> str:
    attempt = evidence.attempt
    if attempt is None:
        return "ended before its first step"
    step = (
        attempt.step if attempt.step is not None else (evidence.run.heartbeat() or {}).get("step", attempt.after_step)
    )
    return f"ended in attempt {attempt.number} ({attempt.how or 'without a word'}) at step {step}"


def _verdict(evidence: Evidence, state: str, word: Word, cause: Cause, also: list[str]) -> Verdict:
    rank, node, attempt = word.rank, word.node, evidence.attempt
    if cause.name == "hang" and attempt is not None:
        late = lagging(evidence.run, attempt.step or 0)
        blamed = stuck_ranks(evidence.run, attempt, attempt.step or 0) or late
        if blamed:
            rank, why = next(iter(blamed.items()))
            node = attempt.node_of(rank)
            also = [f"rank {rank}: {why}", *(late[r] for r in late if r == rank and late is not blamed), *also]
    also += [*_left_by_nccl(evidence), *_warnings(evidence)]
    facts = _facts(evidence, word, cause) | {"rank": rank or 0, "node": node or "that node"}
    return Verdict(
        run=evidence.run.name, state=state, cause=cause.name, what=cause.what.format(**facts), do=cause.do.format(**facts),
        rank=rank, node=node, at=word.at, said=str(facts["said"]), source=word.source, also=also[:6],
    )  # fmt: skip


def _warnings(evidence: Evidence) -> list[str]:
    """What the newest attempt was warned of while it trained."""
    began = evidence.attempt.began if evidence.attempt else 0.0
    told = [e for e in evidence.history if e["event"] == "warning" and e["time"] >= began]
    return list(dict.fromkeys(str(event.get("message")) for event in told))


def _left_by_nccl(evidence: Evidence) -> list[str]:
    files = pickles(evidence.run, evidence.attempt.began if evidence.attempt else 0.0)
    if not files:
        return []
    folder = evidence.run.logs
    return [
        f"NCCL left the last collectives of {len(files)} rank(s) as pickles, which are not opened here; "
        f"if nobody else writes to that folder: torchfrtrace --prefix {PICKLES} {folder}"
    ]


def _facts(evidence: Evidence, word: Word, cause: Cause) -> dict[str, object]:
    """What a sentence of the catalogue may name."""
    run, attempt = evidence.run, evidence.attempt
    config = read_yaml(run.config_file)
    share = int(config["data"]["batch_size"]) // max(attempt.world_size if attempt else 1, 1)
    held = (config.get("trainer") or {}).get("micro_batch") or share
    return {
        "run": run.name, "config": run.path.parent.name, "step": attempt.step if attempt else 0, "rank": word.rank or 0,
        "node": word.node or "that node", "micro_batch": max(1, int(held) // 2), "said": word.line(cause.pattern).rstrip("."),
    }  # fmt: skip


def lines(verdict: Verdict) -> list[str]:
    """The answer for a person."""
    if not verdict.cause:
        return [f"{verdict.run}: {verdict.state}.", *(f"  also  {text}" for text in verdict.also)]
    where = f"rank {verdict.rank}" if verdict.rank is not None else ""
    where += (" on " if where else "") + f"node {verdict.node}" if verdict.node else ""
    when = f"{datetime.fromtimestamp(verdict.at):%d %b %Y %H:%M:%S}" if verdict.at else ""
    shown = {
        "what": verdict.what,
        "where": where or "no rank is named",
        "when": when,
        "said": f"{verdict.said}  ({verdict.source})" if verdict.said else "",
        "also": "; ".join(verdict.also),
        "do": verdict.do,
    }
    return [f"{verdict.run} {verdict.state}", *(f"{name:>6}  {text}" for name, text in shown.items() if text)]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python monitoring/why.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, its name (dismix_demo/1f3a9c2e), or a config's name")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--runs", metavar="DIR", help="where run folders lie; default: SLURMPHONY_RUNS or runs/")
    args = parser.parse_args(words)
    runs = runs_root(args.runs)
    verdict = judge(find_run(args.run, runs))
    print(json.dumps(asdict(verdict)) if args.json else "\n".join(lines(verdict)))
    return 0


if __name__ == "__main__":
    run_command(main)
