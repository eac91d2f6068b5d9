"""The processes of one evaluation, as `torchrun` or `accelerate launch` start them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..errors import InputError


@dataclass(frozen=True)
class Shard:
    """This process and how many there are."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def from_environment() -> Shard:
        """Join the group that the launcher's variables describe; without them, the only process."""
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return Shard()
        if not torch.distributed.is_available():
            raise InputError("this torch has no torch.distributed: run one process")
        # gloo also where there are GPUs: all that goes between the processes is that they are done.
        torch.distributed.init_process_group("gloo")
        return Shard(int(os.environ["RANK"]), count)

    @property
    def first(self) -> bool:
        """Whether this process prints and writes the results."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """End the group."""
        if self.count > 1:
            torch.distributed.destroy_process_group()
