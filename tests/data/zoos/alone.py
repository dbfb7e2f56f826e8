"""One network of a zoo trained alone, as anyone would: a module's functions, autograd, an optimizer of torch."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from nfn_opt.data.zoos.architecture import CnnArchitecture, SmallCnn
from nfn_opt.data.zoos.hyperparameters import Member, ZooOptions, initial_parameters
from nfn_opt.data.zoos.stacked import StackedCnn
from nfn_opt.data.zoos.training import ZooData, batches, draw_noise
from nfn_opt.meta.randomness import seeded_generator


def output(
    network: SmallCnn,
    images: Tensor,
    dropout: float = 0,
    noise: Tensor | None = None,
    used: list[int] | None = None,
) -> Tensor:
    """Logits, with dropout by given noise on the pixels that count."""
    start = 0
    for number, layer in enumerate(network.layers):
        images = getattr(torch, network.activation)(layer(images))
        if noise is not None and used is not None:
            batch, width, side = len(images), images.shape[1], used[number + 1]
            size = batch * width * side**2
            some = noise[start : start + size].view(batch, side, side, width).permute(0, 3, 1, 2)
            start += size
            kept = torch.zeros_like(images)
            kept[:, :, :side, :side] = (some > dropout).to(images.dtype)
            images = images * kept / (1 - dropout)
    return network.fc(images.mean((2, 3)))


def optimizer_of(member: Member, network: SmallCnn) -> torch.optim.Optimizer:
    rate = member.learning_rate
    if member.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=rate)
    if member.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=rate, eps=1e-7)
    return torch.optim.RMSprop(network.parameters(), lr=rate, alpha=0.9, eps=1e-7)


def train_alone(
    member: Member, data: ZooData, options: ZooOptions, architecture: CnnArchitecture
) -> SmallCnn:
    network = SmallCnn(architecture, member.activation)
    network.load_state_dict(initial_parameters(member, architecture, options.seed))
    network.to(data.train.dtype)
    optimizer = optimizer_of(member, network)
    shape = StackedCnn(architecture, data.train.shape[-1], member.activation)
    noises = seeded_generator(options.seed, f"zoo/dropout/{member.train_fraction}")
    order = batches(options, member.train_fraction, len(data.train))
    for numbers in itertools.islice(order, member.steps):
        noise = None
        if member.dropout:
            noise = draw_noise(len(numbers) * sum(shape.units), noises).to(data.train.dtype)
        optimizer.zero_grad()
        logits = output(network, data.train[numbers], member.dropout, noise, shape.used)
        weights = [value for name, value in network.named_parameters() if name.endswith("weight")]
        penalty = sum(weight.square().sum() for weight in weights)
        (F.cross_entropy(logits, data.train_labels[numbers]) + member.l2reg * penalty).backward()
        optimizer.step()
    return network
