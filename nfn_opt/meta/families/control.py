"""Classic control environments of gymnasium, many at once: the same equations, in batched tensor operations."""

from __future__ import annotations

import abc
from math import pi
from typing import ClassVar

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""One tensor for each state variable; all of one shape."""


class Environment(abc.ABC):
    """Dynamics and reward of an environment, without any state of its own.

    Attributes:
        name: Its name in gymnasium, whose equations it follows step by step.
        observations: Numbers that the policy sees.
        outputs: Numbers that the policy puts out: a score for each action, or one continuous action.
    """

    name: ClassVar[str]
    observations: ClassVar[int]
    outputs: ClassVar[int]

    @abc.abstractmethod
    def reset(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """Draw initial states, float32, shape (*shape, number of state variables)."""

    @abc.abstractmethod
    def observe(self, state: State) -> Tensor:
        """What the policy sees, shape (observations, *shape)."""

    @abc.abstractmethod
    def act(self, outputs: Tensor) -> Tensor:
        """The force or torque that the outputs (outputs, *shape) of a policy choose, shape (*shape)."""

    @abc.abstractmethod
    def step(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor | None]:
        """The next states, the rewards, and which episodes have ended (None if none can)."""

    @abc.abstractmethod
    def loss(self, returns: Tensor, horizon: int) -> Tensor:
        """Sums of rewards over episodes of at most ``horizon`` steps, as a loss that mostly lies in [0, 1]."""


class CartPole(Environment):
    """Keep a pole upright on a cart that is pushed left or right; the loss is the missing share of the horizon."""

    name = "CartPole-v1"
    observations = 4
    outputs = 2

    def reset(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """See :class:`Environment`."""
        return _uniform(generator, (*shape, 4), 0.05)

    def observe(self, state: State) -> Tensor:
        """See :class:`Environment`."""
        return torch.stack(state)

    def act(self, outputs: Tensor) -> Tensor:
        """Pushes of 10 to the side of the larger score."""
        left, right = outputs.unbind(0)
        return torch.where(right > left, 10.0, -10.0)

    def step(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor | None]:
        """See :class:`Environment`."""
        x, speed, angle, turn = state
        cos, sin = angle.cos(), angle.sin()
        pull = torch.addcmul(action, turn.square(), sin, value=0.05) / 1.1
        inertia = (2.0 / 3.0) - (0.05 / 1.1) * cos.square()
        angular = (9.8 * sin - cos * pull) / inertia
        linear = torch.addcmul(pull, angular, cos, value=-0.05 / 1.1)
        x, angle = x.add(speed, alpha=0.02), angle.add(turn, alpha=0.02)
        state = (x, speed.add(linear, alpha=0.02), angle, turn.add(angular, alpha=0.02))
        fallen = (x.abs() > 2.4) | (angle.abs() > 12 * 2 * pi / 360)
        return state, torch.ones_like(x), fallen

    def loss(self, returns: Tensor, horizon: int) -> Tensor:
        """See :class:`Environment`."""
        return 1 - returns / horizon


class Pendulum(Environment):
    """Swing a pendulum up and keep it there with little torque; the loss is the mean cost a step over 16.3."""

    name = "Pendulum-v1"
    observations = 3
    outputs = 1

    def reset(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """See :class:`Environment`."""
        return _uniform(generator, (*shape, 2), 1.0) * torch.tensor([pi, 1.0], device=generator.device)

    def observe(self, state: State) -> Tensor:
        """See :class:`Environment`."""
        angle, turn = state
        return torch.stack((angle.cos(), angle.sin(), turn))

    def act(self, outputs: Tensor) -> Tensor:
        """Torques in [-2, 2]."""
        return outputs.squeeze(0).clamp(-2.0, 2.0)

    def step(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor | None]:
        """See :class:`Environment`."""
        angle, turn = state
        off = torch.remainder(angle + pi, 2 * pi) - pi
        reward = -(off.square() + 0.1 * turn.square() + 0.001 * action.square())
        turn = (turn + (15.0 * angle.sin() + 3.0 * action) * 0.05).clamp(-8.0, 8.0)
        return (angle + 0.05 * turn, turn), reward, None

    def loss(self, returns: Tensor, horizon: int) -> Tensor:
        """See :class:`Environment`."""
        return returns / (-16.3 * horizon)


class MountainCar(Environment):
    """Drive a weak car out of a valley; the loss is 1 less the return over 100."""

    name = "MountainCarContinuous-v0"
    observations = 2
    outputs = 1

    def reset(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """See :class:`Environment`."""
        position = _uniform(generator, shape, 0.1) - 0.5
        return torch.stack((position, torch.zeros_like(position)), -1)

    def observe(self, state: State) -> Tensor:
        """See :class:`Environment`."""
        return torch.stack(state)

    def act(self, outputs: Tensor) -> Tensor:
        """Forces in [-1, 1]."""
        return outputs.squeeze(0).clamp(-1.0, 1.0)

    def step(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor | None]:
        """See :class:`Environment`."""
        position, speed = state
        speed = (speed + 0.0015 * action - 0.0025 * torch.cos(3 * position)).clamp(-0.07, 0.07)
        position = (position + speed).clamp(-1.2, 0.6)
        speed = torch.where(position == -1.2, speed.clamp(min=0.0), speed)
        arrived = (position >= 0.45) & (speed >= 0)
        return (position, speed), 100.0 * arrived - 0.1 * action.square(), arrived

    def loss(self, returns: Tensor, horizon: int) -> Tensor:
        """See :class:`Environment`."""
        return 1 - returns / 100


class Acrobot(Environment):
    """Swing two links up by the torque between them; the loss is the share of the horizon that it takes."""

    name = "Acrobot-v1"
    observations = 6
    outputs = 3

    def reset(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """See :class:`Environment`."""
        return _uniform(generator, (*shape, 4), 0.1)

    def observe(self, state: State) -> Tensor:
        """See :class:`Environment`."""
        first, second, turn, other = state
        return torch.stack((first.cos(), first.sin(), second.cos(), second.sin(), turn, other))

    def act(self, outputs: Tensor) -> Tensor:
        """Torques -1, 0 or 1, whichever has the largest score."""
        return outputs.argmax(0).to(outputs.dtype) - 1

    def step(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor | None]:
        """See :class:`Environment`."""
        moved = _runge_kutta(torch.stack(state), action, 0.2)
        angles = torch.remainder(moved[:2] + pi, 2 * pi) - pi
        first, second = angles.unbind(0)
        turn, other = moved[2].clamp(-4 * pi, 4 * pi), moved[3].clamp(-9 * pi, 9 * pi)
        up = -first.cos() - (second + first).cos() > 1.0
        return (first, second, turn, other), up.to(moved.dtype) - 1, up

    def loss(self, returns: Tensor, horizon: int) -> Tensor:
        """See :class:`Environment`."""
        return -returns / horizon


def _runge_kutta(state: Tensor, torque: Tensor, dt: float) -> Tensor:
    """One step of fourth order of the acrobot's states, shape (4, *shape)."""
    k1 = _acrobot(state, torque)
    k2 = _acrobot(state + 0.5 * dt * k1, torque)
    k3 = _acrobot(state + 0.5 * dt * k2, torque)
    k4 = _acrobot(state + dt * k3, torque)
    return state + dt / 6 * (k1 + 2 * (k2 + k3) + k4)


def _acrobot(state: Tensor, torque: Tensor) -> Tensor:
    """Time derivatives; both links have length and mass 1, centre at 0.5 and moment of inertia 1."""
    first, second, turn, other = state.unbind(0)
    cos, sin = second.cos(), second.sin()
    d1, d2 = cos + 3.5, 0.5 * cos + 1.25
    phi2 = 4.9 * (first + second).sin()
    phi1 = phi2 + 14.7 * first.sin() - 0.5 * other * sin * (other + 2 * turn)
    ratio = d2 / d1
    second_rate = (torque + ratio * phi1 - 0.5 * turn.square() * sin - phi2) / (1.25 - d2 * ratio)
    return torch.stack((turn, other, -(d2 * second_rate + phi1) / d1, second_rate))


def _uniform(generator: torch.Generator, shape: tuple[int, ...], bound: float) -> Tensor:
    return (2 * torch.rand(shape, generator=generator, device=generator.device) - 1) * bound


ENVIRONMENTS: dict[str, type[Environment]] = {
    "cartpole": CartPole,
    "pendulum": Pendulum,
    "mountain-car": MountainCar,
    "acrobot": Acrobot,
}
"""Environments by short name."""
