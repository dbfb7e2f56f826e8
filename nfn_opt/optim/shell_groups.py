"""Which rule updates which parameters: rules by name, and a model's parameters as groups."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nfn_opt.optim.bundled import available_rules, pretrained
from nfn_opt.optim.rule import UpdateRule, closest, make_rule, needs_space, registered_kinds
from nfn_opt.optim.storage import load_rule
from nfn_opt.weight_space import WeightSpace

RuleLike = UpdateRule | str | os.PathLike[str] | None
"""A rule, the name of one that comes with the library, a kind of rule, a path, or ``None`` for the default."""


def resolve_rule(rule: RuleLike, *, space: WeightSpace | None = None) -> UpdateRule:
    """The rule that is meant.

    Args:
        rule: An :class:`UpdateRule`; the name of a rule that comes with the library (see
            :func:`available_rules`); a kind, such as ``"adamw"``, for a rule as :func:`make_rule` makes it
            with all options at their defaults; the path of a saved rule; ``None`` for ``"default"``. Of a
            name and a kind that are the same, the name is meant.
        space: The weight space, for a kind or a file whose outer parameters belong to one.

    Raises:
        ValueError: If it is the name of nothing and no file.
        TypeError: If it is none of these.

    Example:
        >>> resolve_rule("adamw").kind
        'adamw'
    """
    if isinstance(rule, UpdateRule):
        return rule
    if rule is None:
        return pretrained()
    if not isinstance(rule, (str, os.PathLike)):
        raise TypeError(
            f"rule is a {type(rule).__name__}, expected an UpdateRule, the name or kind of one, the path of a "
            "saved one, or None for the default"
        )
    name = os.fspath(rule)
    if isinstance(rule, str) and name in available_rules():
        return pretrained(name)
    if isinstance(rule, str) and name in registered_kinds():
        return make_rule(name, space=space if needs_space(name) else None)
    if (
        isinstance(rule, str)
        and not Path(name).suffix
        and Path(name).name == name
        and not (name and Path(name).exists())
    ):
        known = sorted({*available_rules(), *registered_kinds()})
        raise ValueError(
            f"there is no rule {name!r}{closest(name, known)}; expected a rule that comes with the library "
            f"({', '.join(available_rules())}), a kind of rule ({', '.join(sorted(registered_kinds()))}), or the "
            "path of a saved one"
        )
    return load_rule(rule, space=space)


def parameter_groups(
    model: nn.Module,
    *,
    vectors: RuleLike = "adamw",
    embeddings: RuleLike = "adamw",
    weight_decay: float = 0.0,
    vector_weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """A model's parameters as groups: matrices for the optimizer's own rule, vectors and embeddings for another.

    Biases and norms are few and behave differently from matrices; the rows of an embedding are seen rarely.
    Published recipes of learned rules and of Muon leave both to AdamW.

    Args:
        model: The model.
        vectors: Rule of tensors with fewer than two axes, see :func:`resolve_rule`. An :class:`UpdateRule`,
            such as ``make_rule("adamw", lr=3e-4)``, brings its step size; the optimizer's ``lr`` multiplies it.
        embeddings: Rule of the weights of :class:`torch.nn.Embedding`, shared ones included.
        weight_decay: Of matrices and embeddings.
        vector_weight_decay: Of vectors.

    Returns:
        Groups of named parameters, without those that are empty.

    Example:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
        >>> for group in parameter_groups(model):
        ...     print(group.get("rule"), [name for name, _ in group["params"]])
        None ['1.weight']
        adamw ['1.bias']
        adamw ['0.weight']
    """
    looked_up = {id(p) for module in _embeddings(model) for p in module.parameters(recurse=False)}
    kinds: dict[str, list[tuple[str, Tensor]]] = {"matrix": [], "vector": [], "embedding": []}
    for name, p in model.named_parameters():
        kind = "vector" if p.dim() < 2 else "embedding" if id(p) in looked_up else "matrix"
        kinds[kind].append((name, p))
    groups: list[dict[str, Any]] = [
        {"params": kinds["matrix"], "weight_decay": weight_decay},
        {"params": kinds["vector"], "weight_decay": vector_weight_decay, "rule": vectors},
        {"params": kinds["embedding"], "weight_decay": weight_decay, "rule": embeddings},
    ]
    return [group for group in groups if group["params"]]


def _embeddings(model: nn.Module) -> Iterable[nn.Module]:
    return (module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag)))
