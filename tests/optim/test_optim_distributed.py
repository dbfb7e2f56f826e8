"""Learned optimizers under DistributedDataParallel: two processes train as one, and save what can be continued."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from nfn_opt.optim import LearnedOptimizer, make_rule
from nfn_opt.optim.shell_fast import FastStep
from tests.optim.shell_cases import DATA, make_model, train, weights

WORKER = """
import sys, torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.parallel import DistributedDataParallel
from nfn_opt.optim import LearnedOptimizer, make_rule
from nfn_opt.optim.shell_fast import FastStep

FastStep.least = 0
torch.distributed.init_process_group("gloo")
rank, folder = torch.distributed.get_rank(), sys.argv[1]
given = torch.load(f"{folder}/given.pt", weights_only=True)
body, head = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
body.load_state_dict(given["body"])
head.load_state_dict(given["head"])
model = DistributedDataParallel(nn.Sequential(body, nn.Tanh(), head))
optimizer = LearnedOptimizer(model.parameters(), make_rule("mlp"))
for _ in range(3):
    optimizer.zero_grad()
    (model(given["data"][rank::2]) - 1).square().mean().backward()
    optimizer.step()
torch.save([p.detach() for p in model.parameters()], f"{folder}/after{rank}.pt")
state = get_optimizer_state_dict(model, optimizer)
assert "0.weight" in state["state"], state["state"].keys()
save(state, checkpoint_id=f"{folder}/saved")
resumed = LearnedOptimizer(model.parameters(), make_rule("mlp"))
resumed.zero_grad()
state = get_optimizer_state_dict(model, resumed)
load(state, checkpoint_id=f"{folder}/saved")
set_optimizer_state_dict(model, resumed, state)
assert resumed.param_groups[0]["step"] == 3
for p in model.parameters():
    assert all(torch.equal(resumed.state[p][key], value) for key, value in optimizer.state[p].items())
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    assert FastStep.least == 0
    model = make_model(torch.float64)
    given = {"body": model.body.state_dict(), "head": model.head.state_dict(), "data": DATA.double()}
    torch.save(given, tmp_path / "given.pt")
    (tmp_path / "worker.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[2])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "PYTHONPATH": root}
    workers = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "worker.py"), str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    train(model, LearnedOptimizer(model.parameters(), make_rule("mlp")), 3)
    for rank in range(2):
        after = torch.load(tmp_path / f"after{rank}.pt", weights_only=True)
        torch.testing.assert_close(after, weights(model), rtol=1e-9, atol=1e-11)
