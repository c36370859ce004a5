"""Losses of a training, written for TensorBoard, Weights & Biases or MLflow as they arise.

The environment variable DEKAG_TRAIN_LOG selects one of them (`dekag train --log` sets it); without it,
nothing is written. Each training is a run named after its folder. The libraries are extras of the package.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dekag.errors import InvalidInputError, UnavailableError

ENVIRONMENT = "DEKAG_TRAIN_LOG"
LOG_EVERY_STEPS = 20
Log = Callable[[int, Mapping[str, float]], None]
"""Called with the number of steps done and the smoothed losses."""


@contextmanager
def opened(folder: Path) -> Iterator[Log]:
    """The log of the training in `folder`, closed on leaving the context.

    TensorBoard's files are in `folder/tensorboard`; W&B and MLflow use their own settings, such as
    WANDB_PROJECT, WANDB_MODE and MLFLOW_TRACKING_URI.

    Raises:
        InvalidInputError: DEKAG_TRAIN_LOG is not one of the names.
        UnavailableError: the library is not installed.
    """
    name = os.environ.get(ENVIRONMENT, "").strip()
    if not name:
        yield lambda _, __: None
        return
    if name not in LOGS:
        raise InvalidInputError(ENVIRONMENT, f"one of {', '.join(LOGS)}", name)
    with contextlib.ExitStack() as stack:
        try:
            write = stack.enter_context(LOGS[name](folder))
        except ImportError:
            raise UnavailableError(f"{name} is not installed: pip install 'dekag[{name}]'") from None
        yield write


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder / "tensorboard") as writer:

        def write(step: int, losses: Mapping[str, float]) -> None:
            for name, value in losses.items():
                writer.add_scalar(name, value, step)

        yield write


@contextmanager
def _wandb(folder: Path) -> Iterator[Log]:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    with wandb.init(name=folder.name, dir=folder, project=os.environ.get("WANDB_PROJECT", "dekag")) as run:
        yield lambda step, losses: run.log(dict(losses), step=step)


@contextmanager
def _mlflow(folder: Path) -> Iterator[Log]:
    import mlflow

    with mlflow.start_run(run_name=folder.name):
        yield lambda step, losses: mlflow.log_metrics(dict(losses), step=step)


LOGS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
"""Destinations by name."""
