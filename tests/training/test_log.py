"""Losses of trainings for TensorBoard, W&B and MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dekag.errors import InvalidInputError, UnavailableError
from dekag.training.log import ENVIRONMENT
from dekag.training.loop import TrainingRun


def train(folder: Path, steps: int) -> None:
    """A tiny training."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    run = TrainingRun(folder, model, [torch.optim.SGD(model.parameters(), lr=0.1)], seed=0)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = torch.randn(8, 2, generator=generator)
        error = (model(x).squeeze(1) - x.sum(1)).square().mean()
        return {"loss": error, "half": error / 2}

    run.run(step, steps, show=False)


def test_tensorboard_gets_every_loss_of_a_resumed_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv(ENVIRONMENT, "tensorboard")
    for steps in (40, 70):
        train(tmp_path, steps)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["half", "learning_rate_factor", "loss"]
    losses = events.Scalars("loss")
    assert [each.step for each in losses] == [20, 40, 60, 70]
    assert losses[-1].value < losses[0].value
    assert events.Scalars("half")[0].value == pytest.approx(losses[0].value / 2)


def test_nothing_is_written_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    train(tmp_path, 20)
    assert not (tmp_path / "tensorboard").exists()


def test_an_unknown_or_missing_log_stops_the_training_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, "paper")
    with pytest.raises(InvalidInputError, match="one of tensorboard, wandb, mlflow"):
        train(tmp_path, 20)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setenv(ENVIRONMENT, "mlflow")
    with pytest.raises(UnavailableError, match=r"pip install 'dekag\[mlflow\]'"):
        train(tmp_path, 20)
    assert not (tmp_path / "state.json").exists()


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed: pip install 'dekag[wandb]'")
    monkeypatch.setenv(ENVIRONMENT, "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path / "run", 20)
    assert list((tmp_path / "run").rglob("*.wandb"))


def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'dekag[mlflow]'")
    monkeypatch.setenv(ENVIRONMENT, "mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    train(tmp_path / "run", 40)
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.tags["mlflow.runName"] == "run"
    history = mlflow.tracking.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [each.step for each in history] == [20, 40]
