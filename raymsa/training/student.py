"""What is trained: a Thinker with adapters, and a readout with its head."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raymsa.clip import Batch
from raymsa.evaluation.metrics import CRITERIA, Criterion
from raymsa.readouts.base import Readout
from raymsa.spec import ModelSpec, TrainSpec
from raymsa.target import Reading, Target
from raymsa.thinker.backbone import Thinker
from raymsa.thinker.load import autocast


@dataclass
class Student:
    """A Thinker, a readout and the readout's head on one device."""

    thinker: Thinker
    readout: Readout
    head: nn.Module | None
    target: Target
    model: ModelSpec

    def loss_B(self, batch: Batch) -> Tensor:
        """One loss per clip [B]."""
        with self._autocast():
            return self.readout.loss_B(self.head, self.thinker, batch.to(self.thinker.device), self.target)

    @torch.inference_mode()
    def read(self, batch: Batch) -> list[Reading]:
        """One reading per clip."""
        with self._autocast():
            return self.readout.read(self.head, self.thinker, batch.to(self.thinker.device), self.target)

    @torch.inference_mode()
    def states(self, batch: Batch) -> list[np.ndarray]:
        """The final-layer hidden state [D] that each clip's answer is read from, in float32 on the host."""
        with self._autocast():
            state_BD = self.readout.state_BD(self.head, self.thinker, batch.to(self.thinker.device))
        return list(state_BD.float().cpu().numpy())

    @property
    def rule(self) -> Criterion:
        """What decides on valid."""
        return CRITERIA[self.target.profile]

    def groups(self, train: TrainSpec) -> list[dict[str, object]]:
        """Optimizer groups: adapters and head, each with its own learning rate."""
        head = list(self.head.parameters()) if self.head is not None else []
        groups = [(self.thinker.parameters(), train.lora_lr), (head, train.head_lr)]
        return [{"params": params, "lr": rate} for params, rate in groups if params]

    def trainable(self) -> int:
        """Trainable parameters, adapters and head."""
        head = list(self.head.parameters()) if self.head is not None else []
        return sum(p.numel() for p in [*self.thinker.parameters(), *head])

    def train_mode(self, on: bool, checkpointing: bool | int | str = False) -> None:
        """Dropout and recomputation of activations on or off."""
        self.thinker.train_mode(on, checkpointing)
        if self.head is not None:
            self.head.train(on)

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(self.model, self.thinker.device)
