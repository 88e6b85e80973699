"""Who goes into which split where the dataset's authors did not say, or said it wrongly: by group, and by names alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import xxhash

VALID, TEST = 0.1, 0.1  # shares of the groups


def split_by_name(groups: Iterable[str], least: int = 1) -> dict[str, str]:
    """Group -> split, about 80/10/10, decided by the hash of each group's name.

    In a large set a new group moves no other. A small set has ``least`` groups in each split, those with the smallest hashes; where there
    are too few for that, all are for training.
    """
    ranked = sorted(set(groups), key=lambda name: (_unit(name), name))
    splits = dict.fromkeys(ranked, "train")
    if len(ranked) < 3 * least:
        return splits
    test = max(least, sum(_unit(name) < TEST for name in ranked))
    valid = max(least, sum(_unit(name) < TEST + VALID for name in ranked) - test)
    splits |= dict.fromkeys(ranked[:test], "test") | dict.fromkeys(ranked[test : test + valid], "valid")
    return splits


def connected(marks: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Name -> group, where names that share a mark, directly or through others, are of one group (its first name)."""
    parent = {name: name for name in sorted(marks)}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    owner: dict[str, str] = {}
    for name in parent:
        for mark in marks[name]:
            first, second = sorted((root(owner.setdefault(mark, name)), root(name)))
            parent[second] = first
    return {name: root(name) for name in parent}


def _unit(name: str) -> float:
    return xxhash.xxh3_64_intdigest(name.encode()) / 2**64
