"""The practice cluster for tests that need a scheduler."""

from tests.cluster.fixtures import *  # noqa: F403
