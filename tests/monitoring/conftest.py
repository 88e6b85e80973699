"""An empty MLflow store, made once by MLflow itself and copied for every test (making one takes seconds)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from monitoring.mirror import Mirror, Outcome
from monitoring.store import mlflow_environment, open_store, store_uri

os.environ.update({k: v for k, v in mlflow_environment().items() if k.startswith(("MLFLOW", "DO_NOT"))})


@dataclass
class Bench:
    """A runs root, a store, and what the import did last."""

    runs: Path
    path: Path

    @property
    def artifacts(self) -> Path:
        return self.path.parent / "mlartifacts" / self.path.stem

    def update(self) -> dict[str, Outcome]:
        """Import as a new process would: nothing is remembered from before."""
        with closing(open_store(self.path, print)) as store:
            return {outcome.name: outcome for outcome in Mirror(store, lambda: [self.runs], self.artifacts).update()}

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=store_uri(self.path))

    def run(self, name: str = "dismix_demo/1f3a9c2e"):
        """The run of that name, as MLflow's own client gives it."""
        client = self.client()
        experiments = [e.experiment_id for e in client.search_experiments()]
        found = client.search_runs(experiments, f"attributes.run_name = '{name}'")
        assert len(found) == 1, f"{len(found)} runs called {name}"
        return found[0]

    def points(self, run_id: str) -> dict[str, list[tuple[int, int, str]]]:
        """By metric, all points of a run through MLflow's own client."""
        client = self.client()
        names = client.get_run(run_id).data.metrics
        histories = {name: client.get_metric_history(run_id, name) for name in names}
        return {name: sorted((m.step, m.timestamp, repr(m.value)) for m in found) for name, found in histories.items()}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("MLflow is not installed: NOTHING of the dashboard is tested here (make setup)")
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(path, print).close()
    return path


@pytest.fixture
def bench(tmp_path, empty_store) -> Bench:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_store, path)
    (tmp_path / "runs").mkdir()
    return Bench(tmp_path / "runs", path)
