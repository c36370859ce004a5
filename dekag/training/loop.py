"""The training loop of all models: resumable, deterministic per step, with a progress bar.

The learning rate warms up, stays constant and falls linearly to zero over the last part of the run (by
default a fifth), so a run can be resumed with another number of steps without a jump. Each step has a random
generator seeded by (seed, step), so a resumed run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from dekag.documents import read_json
from dekag.training.log import LOG_EVERY_STEPS, opened

Model = TypeVar("Model", bound=nn.Module)
StepFunction = Callable[[int, torch.Generator], Mapping[str, torch.Tensor]]

WARMUP_STEPS = 200
COOLDOWN_FRACTION = 0.2
SAVE_EVERY_SECONDS = 120.0


def learning_rate_factor(
    step: int,
    total_steps: int,
    warmup_steps: int = WARMUP_STEPS,
    cooldown_fraction: float = COOLDOWN_FRACTION,
) -> float:
    """Learning rate at `step` of `total_steps`, as a fraction (0..1) of the peak."""
    warmup = min(1.0, (step + 1) / min(warmup_steps, total_steps))
    cooldown = min(1.0, (total_steps - step) / max(1.0, cooldown_fraction * total_steps))
    return warmup * cooldown


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random generator of one training step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


class TrainingRun(Generic[Model]):
    """Trains `model` and keeps its exponential moving average in `average`.

    Args:
        folder: folder of the checkpoint (safetensors and JSON only); the run resumes from an existing one.
        model: the module whose trainable parameters are optimised.
        optimizers: stepped together; their initial learning rates are the peaks.
        seed: seed of the generators of all steps.
        ema_decay: decay of the moving average; its effective value is lower in the first steps.

    Attributes:
        kept: tensors of the caller, which the checkpoint keeps too.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        optimizers: list[torch.optim.Optimizer],
        *,
        seed: int,
        ema_decay: float = 0.999,
    ) -> None:
        self.folder = folder
        self.model = model
        self.average: Model = copy.deepcopy(model).requires_grad_(False).eval()
        self.optimizers = optimizers
        self.seed = seed
        self.step = 0
        self.seconds = 0.0
        self.kept: dict[str, torch.Tensor] = {}
        self._ema_decay = ema_decay
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        if (folder / "state.json").exists():
            self._load()

    def run(
        self,
        step_function: StepFunction,
        total_steps: int,
        *,
        max_grad_norm: float = 1.0,
        warmup_steps: int = WARMUP_STEPS,
        cooldown_fraction: float = COOLDOWN_FRACTION,
        save_every_s: float = SAVE_EVERY_SECONDS,
        on_save: Callable[[int], None] | None = None,
        on_step: Callable[[int, Mapping[str, float]], bool] | None = None,
        show: bool = True,
        has_gradients: bool = False,
    ) -> None:
        """Train until `total_steps`; `step_function` returns named losses, of which "loss" is minimised.

        Args:
            step_function: called with the number of the step and its random generator.
            total_steps: number of steps at which the run ends.
            max_grad_norm: gradients are clipped to this norm.
            warmup_steps: steps over which the learning rate rises.
            cooldown_fraction: last part of the run, over which the learning rate falls.
            save_every_s: time between two checkpoints, s.
            on_save: called after every checkpoint with the number of steps done.
            on_step: called after every step with the number of steps done and the smoothed losses; if it
                returns False, training writes a checkpoint and ends.
            show: show a progress bar.
            has_gradients: the step function leaves the gradients in the parameters itself.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.model.train()
        saved = started = time.monotonic()
        base_seconds = self.seconds
        smooth: dict[str, float] = {}
        interval = 0.5 if sys.stderr.isatty() else 15.0
        more = True
        bar = tqdm(
            total=total_steps, initial=self.step, dynamic_ncols=True, mininterval=interval, disable=not show
        )
        with opened(self.folder) as log, bar:
            while more and self.step < total_steps:
                factor = learning_rate_factor(self.step, total_steps, warmup_steps, cooldown_fraction)
                for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
                    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                        group["lr"] = peak * factor
                losses = step_function(self.step, step_generator(self.seed, self.step))
                if not has_gradients:
                    losses["loss"].backward()
                nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                self._update_average()
                self.step += 1
                for name, value in losses.items():
                    new = float(value.detach())
                    smooth[name] = new if name not in smooth else 0.98 * smooth[name] + 0.02 * new
                bar.update()
                if self.step % 20 == 0:
                    bar.set_postfix({name: f"{value:.4f}" for name, value in smooth.items()}, refresh=False)
                if self.step % LOG_EVERY_STEPS == 0 or self.step == total_steps:
                    log(self.step, {**smooth, "learning_rate_factor": factor})
                now = time.monotonic()
                self.seconds = base_seconds + now - started
                more = on_step is None or on_step(self.step, smooth)
                if now - saved > save_every_s or self.step == total_steps or not more:
                    self.save()
                    if on_save is not None:
                        on_save(self.step)
                        self.model.train()
                    saved = time.monotonic()

    def _update_average(self) -> None:
        decay = min(self._ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            current = dict(self.model.named_parameters())
            averages = dict(self.average.named_parameters())
            names = [name for name, p in current.items() if p.requires_grad]
            torch._foreach_lerp_([averages[n] for n in names], [current[n] for n in names], 1 - decay)
            for average, buffer in zip(self.average.buffers(), self.model.buffers(), strict=True):
                average.copy_(buffer)

    def save(self) -> None:
        """Write a checkpoint; an interruption while writing leaves the previous one intact."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v.detach().contiguous().clone() for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v.contiguous().clone() for k, v in self.average.state_dict().items()}
        tensors |= {f"kept.{k}": v.contiguous().clone() for k, v in self.kept.items()}
        for index, optimizer in enumerate(self.optimizers):
            for parameter, values in optimizer.state_dict()["state"].items():
                for name, value in values.items():
                    key = f"optimizer.{index}.{parameter}.{name}"
                    tensors[key] = torch.as_tensor(value).contiguous().clone()
        save_file(tensors, self.folder / "checkpoint.new")
        (self.folder / "checkpoint.new").replace(self.folder / "checkpoint.safetensors")
        state = {"step": self.step, "seed": self.seed, "seconds": round(self.seconds, 1)}
        (self.folder / "state.new").write_text(json.dumps(state))
        (self.folder / "state.new").replace(self.folder / "state.json")

    def _load(self) -> None:
        state = read_json(self.folder / "state.json")
        tensors = load_file(self.folder / "checkpoint.safetensors")

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        self.kept = part("kept.")
        for index, optimizer in enumerate(self.optimizers):
            values: dict[int, dict[str, Any]] = {}
            for key, tensor in part(f"optimizer.{index}.").items():
                parameter, name = key.split(".", 1)
                values.setdefault(int(parameter), {})[name] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
            for weight, loaded in optimizer.state.items():
                for name, value in loaded.items():
                    if value.shape == weight.shape:  # the memory layout of its parameter
                        loaded[name] = torch.empty_like(weight).copy_(value)
        self.step = state["step"]
        self.seed = state["seed"]
        self.seconds = state["seconds"]
