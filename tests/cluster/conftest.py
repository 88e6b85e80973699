"""The clusters of `tests.cluster.fixtures`."""

from tests.cluster.fixtures import *  # noqa: F403
