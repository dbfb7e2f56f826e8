"""Update rules: pure functions from parameters, gradients and state to updates, and their registry."""

from __future__ import annotations

import abc
import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from nfn_opt.weight_space import WeightSpace

Tensors = Mapping[str, Tensor]
"""One tensor for each parameter of a network, by name, in stored shapes."""

State = dict[str, Any]
"""What a rule remembers, tensors only: ``{"tensors": {name: {key: tensor}}, "shared": {key: tensor}}``."""

RuleT = TypeVar("RuleT", bound="type[UpdateRule]")

_REGISTRY: dict[str, type[UpdateRule]] = {}


class UpdateRule(nn.Module, abc.ABC):
    r"""A pure update rule.

    .. math:: p_{t+1} = p_t + u_t \qquad (u_t, s_{t+1}) = f_\theta(p_t, g_t, s_t, t)

    Its parameters are the outer parameters :math:`\theta`. Nothing is modified in place, so that it can be
    differentiated through and mapped over many networks by :func:`torch.func.vmap` (over ``params``,
    ``grads``, ``state`` and ``loss``; the space and the step are shared).

    A subclass names itself in ``kind``, its configuration (a frozen dataclass of JSON values) in
    ``config_class``, and joins the registry by :func:`register_rule`.

    Args:
        config: Configuration; the default one if ``None``.
        generator: Source of the initial outer parameters; a fixed seed if ``None``.
        space: Only for a rule whose outer parameters belong to one weight space.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type[Any]]
    coupled: bool = False
    """Whether the update of one tensor depends on others; if not, the rule takes any subset of them."""
    needs_total_steps: ClassVar[bool] = False
    """Whether an update cannot be made without ``total_steps``."""

    config: Any

    def __init__(
        self,
        config: Any = None,
        *,
        generator: torch.Generator | None = None,
        space: WeightSpace | None = None,
    ) -> None:
        super().__init__()
        self.config = self.config_class() if config is None else config
        if not isinstance(self.config, self.config_class):
            raise TypeError(
                f"config of {type(self).__name__} is a {type(config).__name__}, expected a "
                f"{self.config_class.__name__}; or use make_rule({self.kind!r}, lr=...)"
            )
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.reset(generator, space)

    @abc.abstractmethod
    def reset(self, generator: torch.Generator, space: WeightSpace | None) -> None:
        """Make the outer parameters, drawing them from ``generator``."""

    @abc.abstractmethod
    def init(self, space: WeightSpace, params: Tensors) -> State:
        """The state before the first update.

        Args:
            space: Weight space of the network.
            params: Its parameters in stored shapes.
        """

    @abc.abstractmethod
    def update(
        self,
        params: Tensors,
        grads: Tensors,
        state: State,
        *,
        space: WeightSpace,
        step: Tensor,
        loss: Tensor | None = None,
        total_steps: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], State]:
        """One update of one network.

        Args:
            params: Parameters in stored shapes.
            grads: Gradients, same names and shapes.
            state: What :meth:`init` or the last update gave.
            space: Weight space of the network.
            step: Number of updates made before this one, int64, shape ``()``.
            loss: Training loss of this step, shape ``()``, where known.
            total_steps: Number of updates that the training will have, int64, shape ``()``, where known.

        Returns:
            The updates, to be *added* to the parameters, and the new state.
        """

    def forward(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Tensor], State]:
        """See :meth:`update`; so that :func:`torch.func.functional_call` works on a rule."""
        return self.update(*args, **kwargs)

    def adopt(self, other: UpdateRule) -> None:
        """Take over the outer parameters of another rule of this kind; those that it lacks stay as they are.

        Args:
            other: A rule with other options.

        Raises:
            ValueError: If outer parameters of one name mean something else here; names them.
        """
        found, own = other.state_dict(), self.state_dict()
        changed = sorted(key for key in found.keys() & own.keys() if found[key].shape != own[key].shape)
        if not changed and getattr(other.config, "features", None) != getattr(self.config, "features", None):
            changed = ["features"]
        if changed:
            raise ValueError(
                f"the options change what these outer parameters mean: {', '.join(changed)}; expected options that "
                "keep them or add some; make a new rule with them"
            )
        self.load_state_dict({key: found.get(key, tensor) for key, tensor in own.items()})

    @property
    def space_fingerprint(self) -> str | None:
        """Fingerprint of the weight space that the outer parameters belong to, ``None`` if they fit all."""
        return None

    def extra_repr(self) -> str:
        """The configuration, for printing."""
        return ", ".join(f"{key}={value!r}" for key, value in dataclasses.asdict(self.config).items())


def register_rule(cls: RuleT) -> RuleT:
    """Class decorator: make a rule known to :func:`make_rule` and to saved files by its ``kind``."""
    known = _REGISTRY.setdefault(cls.kind, cls)
    if known is not cls:
        raise ValueError(
            f"the kind {cls.kind!r} belongs to {known.__name__}; give {cls.__name__} another kind"
        )
    return cls


def registered_kinds() -> list[str]:
    """The kinds that :func:`make_rule` knows.

    Example:
        >>> {"adam", "sgd"} <= set(registered_kinds())
        True
    """
    return sorted(_REGISTRY)


def rule_class(kind: str) -> type[UpdateRule]:
    """The class registered under ``kind``.

    Raises:
        ValueError: If there is none; the message lists all and the closest.
    """
    if kind not in _REGISTRY:
        raise ValueError(
            f"there is no rule of kind {kind!r}{closest(kind, _REGISTRY)}; expected one of "
            f"{sorted(_REGISTRY)}"
        )
    return _REGISTRY[kind]


def closest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """A question that offers the closest known name, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def needs_space(kind: str, **config: Any) -> bool:
    """Whether the outer parameters of a rule of this kind and configuration belong to one weight space.

    Example:
        >>> needs_space("nfn", sharing="per_parameter"), needs_space("adam")
        (True, False)
    """
    default = getattr(rule_class(kind).config_class(), "sharing", None)
    return bool(config.get("sharing", default) == "per_parameter")


def make_rule(
    kind: str,
    *,
    generator: torch.Generator | None = None,
    space: WeightSpace | None = None,
    **config: Any,
) -> UpdateRule:
    """Make an update rule by its kind and the fields of its configuration.

    Args:
        kind: One of :func:`registered_kinds`, such as ``"adam"``, ``"mlp"`` or ``"relational"``.
        generator: Source of the initial outer parameters; a fixed seed if ``None``.
        space: Only for a rule whose outer parameters belong to one weight space.
        **config: Fields of the configuration; the others keep their defaults.

    Raises:
        ValueError: If the kind or a field is unknown, or a value is out of range.
        TypeError: If a value is text and not the number that is expected, or anything else of the wrong type.

    Example:
        >>> make_rule("adam", lr=1e-3).config.lr
        0.001
    """
    cls = rule_class(kind)
    default = cls.config_class()
    fields = [field.name for field in dataclasses.fields(default)]
    for name, value in config.items():
        if name not in fields:
            raise ValueError(
                f"a {kind!r} rule has no option {name!r}{closest(name, fields)}; expected any of {fields}"
            )
        usual = getattr(default, name)
        if isinstance(value, str) and isinstance(usual, (int, float)):
            what = "True or False" if isinstance(usual, bool) else "a number"
            raise TypeError(f"{name} is {value!r}, expected {what}, such as {usual!r}")
    build: Callable[..., UpdateRule] = cls
    return build(cls.config_class(**config), generator=generator, space=space)
