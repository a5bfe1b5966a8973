"""Run under torchrun with two processes: writes what each got from World into the folder it is given."""

import json
import sys
from pathlib import Path

import torch

from kronos_model.distributed import join_world


def check_world(folder: Path) -> None:
    """Write what this process got from its peer."""
    with join_world() as (world, device):
        used, unused = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        torch.nn.init.ones_(used.weight)
        (used(torch.tensor([[1.0, 2.0]])) * (world.rank + 1)).sum().backward()
        if world.rank == 1:
            unused(torch.tensor([[3.0, 4.0]])).sum().backward()
        world.sum_gradients([*used.parameters(), *unused.parameters()])
        found = {
            "gradients": [p.grad.flatten().tolist() for p in (used.weight, used.bias, unused.weight)],
            "any": [world.any(world.rank == 1, device), world.any(False, device)],
            "gathered": [
                part.tolist() for part in world.gather(torch.tensor([world.rank], dtype=torch.uint8), device)
            ],
        }
        (folder / f"rank{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    check_world(Path(sys.argv[1]))
