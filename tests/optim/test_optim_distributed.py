"""Learned optimizers under DistributedDataParallel: two processes train as one, and save what can be continued."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.parallel import DistributedDataParallel

from nfn_opt.optim import LearnedOptimizer, make_rule
from nfn_opt.optim.shell_fast import FastStep
from tests.optim.shell_cases import DATA, make_model, train, weights
from tests.processes import results, run_processes


def train_share(folder: Path) -> None:
    """Train on every second row of the data, keep the weights, and save and restore the optimizer."""
    FastStep.least = 0
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    given = torch.load(folder / "given.pt", weights_only=True)
    body, head = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
    body.load_state_dict(given["body"])
    head.load_state_dict(given["head"])
    model = DistributedDataParallel(nn.Sequential(body, nn.Tanh(), head))
    optimizer = LearnedOptimizer(model.parameters(), make_rule("mlp"))
    for _ in range(3):
        optimizer.zero_grad()
        (model(given["data"][rank::2]) - 1).square().mean().backward()
        optimizer.step()
    torch.save([p.detach() for p in model.parameters()], folder / f"after{rank}.pt")
    state = get_optimizer_state_dict(model, optimizer)
    assert "0.weight" in state["state"]
    save(state, checkpoint_id=folder / "saved")
    resumed = LearnedOptimizer(model.parameters(), make_rule("mlp"))
    resumed.zero_grad()
    state = get_optimizer_state_dict(model, resumed)
    load(state, checkpoint_id=folder / "saved")
    set_optimizer_state_dict(model, resumed, state)
    assert resumed.param_groups[0]["step"] == 3
    for p in model.parameters():
        assert all(torch.equal(resumed.state[p][key], value) for key, value in optimizer.state[p].items())
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    assert FastStep.least == 0
    model = make_model(torch.float64)
    given = {"body": model.body.state_dict(), "head": model.head.state_dict(), "data": DATA.double()}
    torch.save(given, tmp_path / "given.pt")
    results(run_processes(train_share, tmp_path))
    train(model, LearnedOptimizer(model.parameters(), make_rule("mlp")), 3)
    for rank in range(2):
        after = torch.load(tmp_path / f"after{rank}.pt", weights_only=True)
        torch.testing.assert_close(after, weights(model), rtol=1e-9, atol=1e-11)
