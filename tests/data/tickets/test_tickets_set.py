"""Sets of tickets on the disk: round trips, damage, and builds that were stopped."""

from pathlib import Path

import pytest
import torch

from nfn_opt.artifacts import ArtifactError, save_artifact
from nfn_opt.data import load_images
from nfn_opt.data.tickets import (
    MlpArchitecture,
    PruningOptions,
    TicketSet,
    TrainOptions,
    build_tickets,
    building,
    kept_share,
)
from nfn_opt.data.zoos import CnnArchitecture

MLP = MlpArchitecture(side=8, widths=(6,))


def _build(path: Path, **options: object) -> TicketSet:
    settings = {"count": 5, "architecture": MLP, "chunk_size": 2, "training": TrainOptions(epochs=1)}
    return build_tickets(load_images("digits").subset(300), path, **{**settings, **options})  # type: ignore[arg-type]


def _same(one: TicketSet, other: TicketSet) -> bool:
    pairs = [(one.params, other.params), (one.masks, other.masks), (one.scores, other.scores)]
    return all(left.keys() == right.keys() for left, right in pairs) and all(
        torch.equal(left[name], right[name]) for left, right in pairs for name in left
    )


def test_file_holds_everything(tmp_path: Path) -> None:
    tickets = _build(tmp_path / "set.safetensors", meta={"command": "here"})
    again = TicketSet.load(tmp_path / "set.safetensors")
    assert _same(tickets, again)
    assert again.architecture == MLP
    assert again.meta["command"] == "here"
    assert again.meta["run"]["pruning"]["sparsity"] == 0.95
    assert len(tickets) == 5
    assert kept_share(tickets.masks).tolist() == pytest.approx([0.05] * 5, abs=2e-3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set.safetensors"]


def test_cnn_set(tmp_path: Path) -> None:
    architecture = CnnArchitecture(widths=(3, 3))
    _build(tmp_path / "set.safetensors", architecture=architecture, count=2)
    assert TicketSet.load(tmp_path / "set.safetensors").architecture == architecture


def test_stopped_build_is_resumed_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _build(tmp_path / "whole.safetensors")
    chunk = building._chunk
    made: list[range] = []

    def failing(numbers: range, *others: object) -> TicketSet:
        if made:
            raise KeyboardInterrupt
        made.append(numbers)
        return chunk(numbers, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "_chunk", failing)
    path = tmp_path / "stopped.safetensors"
    with pytest.raises(KeyboardInterrupt):
        _build(path)
    monkeypatch.setattr(building, "_chunk", chunk)
    with pytest.raises(FileExistsError, match="that was stopped"):
        _build(path)
    with pytest.raises(ValueError, match="count"):
        _build(path, count=6, resume=True)
    assert _same(_build(path, resume=True), whole)
    assert _same(_build(path, resume=True), whole)
    with pytest.raises(FileExistsError, match="exists"):
        _build(path)


def test_damaged_shard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.safetensors"
    monkeypatch.setattr(building._Shards, "join", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        _build(path)
    shard = next(iter(sorted(Path(f"{path}.parts").glob("shard*"))))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=f"{shard.name}.*made again"):
        _build(path, resume=True)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no set to resume"):
        _build(tmp_path / "set.safetensors", resume=True)


def test_parts_are_disjoint(tmp_path: Path) -> None:
    tickets = _build(tmp_path / "set.safetensors")
    parts = tickets.split({"train": 3, "test": 2})
    numbers = [part.scores["number"].tolist() for part in parts.values()]
    assert sorted(numbers[0] + numbers[1]) == list(range(5))
    assert _same(TicketSet.concat([tickets[:2], tickets[2:]]), tickets)
    assert len(tickets[-1]) == 1
    with pytest.raises(ValueError, match="cannot be joined"):
        TicketSet.concat([tickets, TicketSet(tickets.params, tickets.masks, MLP)])


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    tickets = _build(tmp_path / "set.safetensors")
    with pytest.raises(ValueError, match=r"must be torch\.bool"):
        TicketSet(tickets.params, {n: m.float() for n, m in tickets.masks.items()}, MLP)
    with pytest.raises(ValueError, match="must have the names"):
        TicketSet({}, tickets.masks, MLP)
    save_artifact(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, kind="ticket_set")
    with pytest.raises(ArtifactError, match="does not hold a valid set"):
        TicketSet.load(tmp_path / "other.safetensors")


def test_rounds_reach_the_sparsity_of_the_paper(tmp_path: Path) -> None:
    tickets = _build(
        tmp_path / "set.safetensors", pruning=PruningOptions(sparsity=0.9, rounds=3, scope="layer")
    )
    for mask in tickets.masks.values():
        assert mask.flatten(1).float().mean(1).tolist() == pytest.approx([0.1] * 5, abs=0.01)
