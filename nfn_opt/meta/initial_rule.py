"""The rule that a run starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nfn_opt.artifacts import ArtifactError, read_header
from nfn_opt.meta.checkpoint import KIND, start_rule
from nfn_opt.meta.config import MetaTrainConfig
from nfn_opt.meta.problems import TaskSource, common_space
from nfn_opt.meta.randomness import seeded_generator
from nfn_opt.optim import (
    UpdateRule,
    available_rules,
    make_rule,
    pretrained,
    pretrained_metadata,
    rule_metadata,
)
from nfn_opt.optim.rule import needs_space
from nfn_opt.weight_space import WeightSpace


def initial_rule(config: MetaTrainConfig, sources: Sequence[TaskSource]) -> UpdateRule:
    """The rule of a configuration, new or from a file.

    Args:
        config: The run.
        sources: What it trains and evaluates on; a rule whose outer parameters belong to one weight space takes
            theirs.

    Raises:
        ValueError: If the rule cannot be made, or belongs to one weight space and the inner problems have several.
        FileNotFoundError: If the file to start from does not exist.
        ArtifactError: If it does not fit.
    """

    def space() -> WeightSpace:
        if any(source.family.redraw_every for source in sources):
            raise ValueError(
                "sharing='per_parameter' makes outer parameters for one weight space, but inner problems are redrawn "
                "with other architectures (redraw_every); leave it out, or take sharing='by_relation'"
            )
        return common_space((source.name, source.draw(0)) for source in sources)

    if config.start_from is not None:
        return _stored(config, space)
    own = space() if needs_space(config.rule, **config.rule_options) else None
    generator = seeded_generator(config.seed, "rule")
    return make_rule(config.rule, generator=generator, space=own, **config.rule_options)


def started_from(config: MetaTrainConfig) -> dict[str, Any] | None:
    """What the file of the rule that a run starts from says of its training; ``None`` if the run starts anew.

    Of a checkpoint, of which only the rule is known, it is empty; the same if the file is no longer there.
    """
    if config.start_from is None:
        return None
    if _bundled(config.start_from):
        return pretrained_metadata(str(config.start_from))
    try:
        return rule_metadata(config.start_from)
    except (ArtifactError, FileNotFoundError):
        return {}


def _bundled(start: Path) -> bool:
    return str(start) in available_rules() and not start.exists()


def _stored(config: MetaTrainConfig, space: Callable[[], WeightSpace]) -> UpdateRule:
    assert config.start_from is not None
    if _bundled(config.start_from):
        rule, own = pretrained(str(config.start_from)), None
    else:
        kind, metadata = read_header(config.start_from)
        fingerprint = (metadata["rule"] if kind == KIND else metadata).get("space")
        own = space() if fingerprint else None
        rule = start_rule(config.start_from, space=own)
    return _changed(rule, config, own) if config.rule_options else rule


def _changed(rule: UpdateRule, config: MetaTrainConfig, space: WeightSpace | None) -> UpdateRule:
    """A rule of other options, with the outer parameters of the given one; those that it lacks are new.

    Raises:
        ValueError: If outer parameters of one name have another shape or meaning.
    """
    options = dataclasses.asdict(rule.config) | dict(config.rule_options)
    changed = make_rule(rule.kind, generator=seeded_generator(config.seed, "rule"), space=space, **options)
    try:
        changed.adopt(rule)
    except ValueError as error:
        raise ValueError(
            f"rule_options {dict(config.rule_options)} do not fit {config.start_from}: {error}, without start_from"
        ) from None
    return changed
