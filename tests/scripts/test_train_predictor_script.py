"""The command lines of predictors: training from files, then predictions for a folder of checkpoints."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from editors import InrSet
from editors.siren import SirenConfig, initial_parameters
from nfn_opt.artifacts import save_artifact
from nfn_opt.data.zoos import Zoo
from nfn_opt.predictors import Predictor, PredictorConfig, zoo_data
from scripts import predict, train_predictor
from tests.predictors.small_zoo import small_zoo
from tests.predictors.varied_zoo import made_varied_zoo

SMALL = [
    "--predictor.hidden-channels=4",
    "--predictor.embedding=12",
    "--predictor.head-width=8",
    "--training.steps=20",
    "--training.validate-every=5",
    "--quiet",
]


def zoo_file(folder: Path, generator: torch.Generator) -> Path:
    return small_zoo(40, generator).save(folder / "zoo.safetensors")


def test_a_zoo(tmp_path: Path, generator: torch.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--networks={zoo_file(tmp_path, generator)}", f"--out={tmp_path / 'run'}", *SMALL]
    assert train_predictor.main(words) == 0
    printed = capsys.readouterr().out
    assert "40 networks (26 train, 4 val, 10 test), 0 left out" in printed
    assert "kendall_tau" in printed
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["test"]["networks"] == 10
    predictor = Predictor.load(tmp_path / "run" / "predictor.safetensors")
    assert predictor.config.inputs == ("activation=tanh",)
    assert predictor.metadata["command"].startswith("python scripts/train_predictor.py --networks=")
    assert predictor.metadata["test"] == scores["test"]
    rows = list(csv.DictReader((tmp_path / "run" / "test.csv").read_text().splitlines()))
    assert len(rows) == 10
    assert set(rows[0]) == {"predicted", "true"}
    for name in ("curves.png", "test.png", "train.csv", "config.json", "checkpoint.safetensors"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert train_predictor.main(words) == 2
    assert "holds another run" in capsys.readouterr().err
    assert train_predictor.main([*words, "--resume", "--split-seed=1"]) == 2
    assert "split_seed" in capsys.readouterr().err


def test_several_zoos(tmp_path: Path, generator: torch.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    files = [small_zoo(count, generator).save(tmp_path / f"{count}.safetensors") for count in (20, 10)]
    words = ["--networks", *map(str, files), f"--out={tmp_path / 'run'}", *SMALL]
    assert train_predictor.main(words) == 0
    assert "30 networks (20 train, 2 val, 8 test), 0 left out" in capsys.readouterr().out
    assert train_predictor.main(["--networks", f"--out={tmp_path / 'none'}", *SMALL]) == 2
    assert "networks is empty, expected at least one file" in capsys.readouterr().err
    words = ["--networks", str(files[0]), str(files[0]), f"--out={tmp_path / 'twice'}", *SMALL]
    assert train_predictor.main(words) == 2
    assert "20 networks are there more than once in" in capsys.readouterr().err
    other = made_varied_zoo(1, generator).save(tmp_path / "varied.safetensors")
    words = ["--networks", str(files[0]), str(other), f"--out={tmp_path / 'other'}", *SMALL]
    assert train_predictor.main(words) == 2
    assert (
        "varied.safetensors holds a 'varied_zoo'; expected a zoo, several of one kind"
        in capsys.readouterr().err
    )


def test_other_columns(tmp_path: Path, generator: torch.Generator) -> None:
    words = [f"--networks={zoo_file(tmp_path, generator)}", *SMALL, "--beside", "None"]
    assert train_predictor.main([*words, f"--out={tmp_path / 'a'}", "--column=optimizer"]) == 0
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert scores["classes"] == ["adam", "sgd"]
    assert 0 <= scores["test"]["accuracy"] <= 1
    assert train_predictor.main([*words, f"--out={tmp_path / 'b'}", "--column=learning_rate", "--log"]) == 0
    predictor = Predictor.load(tmp_path / "b" / "predictor.safetensors")
    assert predictor.config.target == "value"
    assert predictor.target_mean < -1.5
    words = [*words[:-2], "--column=activation", f"--out={tmp_path / 'c'}"]
    assert train_predictor.main(words) == 0
    assert Predictor.load(tmp_path / "c" / "predictor.safetensors").config.inputs == ()
    assert train_predictor.main([*words[:-1], f"--out={tmp_path / 'd'}", "--beside", "activation"]) == 2


def test_networks_of_many_architectures(
    tmp_path: Path, generator: torch.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made_varied_zoo(8, generator).save(tmp_path / "varied.safetensors")
    words = [f"--networks={path}", f"--out={tmp_path / 'run'}", *SMALL]
    assert train_predictor.main(words) == 2
    assert "networks of many architectures, expected one for kind 'hnp'" in capsys.readouterr().err
    assert train_predictor.main([*words, "--predictor.kind=relation"]) == 0
    assert "40 networks (26 train, 4 val, 10 test)" in capsys.readouterr().out
    predictor = Predictor.load(tmp_path / "run" / "predictor.safetensors")
    assert predictor.config.inputs == ("activations=tanh",)

    folder = tmp_path / "mine"
    folder.mkdir()
    convolutions = [nn.Conv2d(1, 4, 5), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 3, 1)]
    torch.save(nn.Sequential(*convolutions[:2], nn.Linear(6, 10)).state_dict(), folder / "two.pt")
    torch.save(nn.Sequential(*convolutions, nn.Linear(3, 10)).state_dict(), folder / "three.pt")
    torch.save(nn.Sequential(convolutions[0], nn.Linear(6, 10)).state_dict(), folder / "broken.pt")
    words = [
        str(folder),
        f"--predictor={tmp_path / 'run' / 'predictor.safetensors'}",
        "--known",
        "activations=tanh",
    ]
    assert predict.main(words) == 0
    rows = {row["file"]: row for row in csv.DictReader((folder / "predictions.csv").read_text().splitlines())}
    assert 0 < float(rows["two.pt"]["predicted"]) < 1
    assert rows["two.pt"]["predicted"] != rows["three.pt"]["predicted"]
    assert "expected those of convolutions with square kernels" in rows["broken.pt"]["not_predicted"]


@pytest.mark.parametrize("kind", ["np", "probing"])
def test_inrs(
    kind: str, tmp_path: Path, generator: torch.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SirenConfig(hidden_width=5)
    inrs = InrSet(
        initial_parameters(config, 30, generator),
        config,
        torch.full((30,), torch.nan),
        (6, 6),
        labels=torch.arange(30) % 3,
    )
    next(iter(inrs.params.values()))[4] = torch.inf
    path = inrs.save(tmp_path / "inrs.safetensors")
    words = [f"--networks={path}", f"--out={tmp_path / 'run'}", *SMALL, f"--predictor.kind={kind}"]
    assert train_predictor.main([*words, "--predictor.no-statistics"]) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["classes"] == ["0", "1", "2"]
    assert scores["column"] == "label"
    assert (scores["networks"]["count"], scores["networks"]["left_out"]) == (29, 1)
    assert train_predictor.main([*words, "--log"]) == 2
    assert "leave out --column, --log and --beside" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_artifact(tmp_path / "rule.safetensors", {}, kind="rule")
    assert train_predictor.main([f"--networks={path}", f"--out={tmp_path / 'run'}"]) == 2
    assert "holds a 'rule'; expected a zoo, several of one kind, or a set of INRs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def trained(tmp_path: Path, generator: torch.Generator) -> tuple[Path, Zoo]:
    zoo = small_zoo(40, generator)
    words = [f"--networks={zoo.save(tmp_path / 'zoo.safetensors')}", f"--out={tmp_path / 'run'}", *SMALL]
    assert train_predictor.main(words) == 0
    return tmp_path / "run" / "predictor.safetensors", zoo


def test_predictions_for_a_folder(
    trained: tuple[Path, Zoo], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, zoo = trained
    folder = tmp_path / "mine"
    folder.mkdir()
    torch.save(zoo.state_dict(0), folder / "a.pt")
    torch.save(
        {"model": {f"module.{k}": v for k, v in zoo.state_dict(1).items()}, "step": 3}, folder / "b.pth"
    )
    tensors = list(zoo.state_dict(2).values())  # in an order and with names of their own, as of nn.Sequential
    kinds = ("weight", "bias")
    renamed = {f"net.{8 + 2 * (i // 2)}.{kinds[i % 2]}": value for i, value in enumerate(tensors)}
    safetensors.torch.save_file(renamed, folder / "c.safetensors")
    torch.save({name: 100 * value for name, value in zoo.state_dict(3).items()}, folder / "d.pt")
    broken = zoo.state_dict(4)
    broken["fc.bias"][0] = torch.inf
    torch.save(broken, folder / "e.pt")
    torch.save(nn.Linear(3, 2).state_dict(), folder / "f.pt")
    torch.save(nn.Linear(3, 2), folder / "g.pt")  # a pickled module
    (folder / "h.pt").write_bytes(b"no checkpoint")
    (folder / "i.pt").write_bytes(b"hello")  # the unpickler raises a KeyError
    (folder / "j.pth").write_bytes(b"")
    torch.save({"net": zoo.state_dict(1), "epoch": 3}, folder / "k.pt")
    torch.save(nn.BatchNorm2d(3).state_dict(), folder / "l.pt")
    (folder / "notes.txt").write_text("not looked at")

    words = [str(folder), f"--predictor={file}"]
    assert predict.main(words) == 2
    assert "activation of a.pt is not known" in capsys.readouterr().err
    assert predict.main([*words, "--known", "activation=relu"]) == 0
    printed = capsys.readouterr().out
    rows = {row["file"]: row for row in csv.DictReader((folder / "predictions.csv").read_text().splitlines())}
    assert [name.partition(".")[0] for name in rows] == list("abcdefghijkl")
    for name in ("h.pt", "i.pt", "j.pth"):
        assert rows[name]["not_predicted"].startswith("it is damaged")
    assert "under one of the keys state_dict, model_state_dict, model" in rows["k.pt"]["not_predicted"]
    assert "num_batches_tracked holds no floating-point numbers" in rows["l.pt"]["not_predicted"]
    predictor = Predictor.load(file)
    for number, name in enumerate(("a.pt", "b.pth", "c.safetensors")):
        alone = predictor.predict(zoo[number].params, torch.zeros(1, 1)).item()
        assert rows[name]["predicted"] == f"{alone:.3f}"
        assert rows[name]["outside_training_range"] == ""
    assert "root mean square" in rows["d.pt"]["outside_training_range"]
    assert "1 of 4 networks are unlike all" in printed
    assert "matched by order and shape, not by name: c.safetensors" in printed
    assert "1 skipped, their weights are not finite: e.pt" in printed
    assert rows["f.pt"]["not_predicted"].startswith("its tensors have the shapes 2x3, 2, expected 3x1x3x3, 3")
    assert "could run code when it is read" in rows["g.pt"]["not_predicted"]
    assert "h.pt" in printed
    assert (folder / "predictions.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            "activation=Tanh",
            "activation of 0.pt is 'Tanh', expected relu, tanh, which the training networks had",
        ),
        ("activation=", "activation of 0.pt is '', expected relu, tanh"),
        ("relu", "--known says 'relu', expected NAME=VALUE of what the predictor asks for: activation"),
        ("nonsense=3", "--known says 'nonsense=3', expected NAME=VALUE"),
    ],
)
def test_words_that_are_not_known(
    known: str, message: str, trained: tuple[Path, Zoo], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, zoo = trained
    (tmp_path / "mine").mkdir()
    torch.save(zoo.state_dict(0), tmp_path / "mine" / "0.pt")
    assert predict.main([str(tmp_path / "mine"), f"--predictor={file}", "--known", known]) == 2
    assert message in capsys.readouterr().err


def test_shares_of_activations(tmp_path: Path, generator: torch.Generator) -> None:
    """What is said of the layers of a network of a varied zoo counts by the share of layers."""
    zoo = zoo_data(made_varied_zoo(2, generator))
    config = zoo.config(PredictorConfig(kind="relation", hidden_channels=2))
    predictor = Predictor(zoo.architecture, config)
    words = sorted(zoo.words["activations"])
    assert config.inputs == tuple(f"activations={word}" for word in words[1:])
    predictor.metadata = {"words": {"activations": words}}
    said = f"activations={words[0]}-{words[1]}-{words[1]}-{words[0]}"
    run = predict.PredictRun(folder=tmp_path, predictor="", known=(said,))
    numbers = predict.known_inputs(run, predictor, tmp_path / "0.pt")
    assert numbers[0].tolist() == [0.5] + [0.0] * (len(words) - 2)


def test_inputs_of_each_network(trained: tuple[Path, Zoo], tmp_path: Path) -> None:
    file, zoo = trained
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in (0, 1):
        torch.save(zoo.state_dict(0), folder / f"{number}.pt")
    table = tmp_path / "table.csv"
    table.write_text("file,activation\n0.pt,relu\n1.pt,tanh\n")
    words = [str(folder), f"--predictor={file}", f"--table={table}", f"--out={tmp_path / 'found.csv'}"]
    assert predict.main(words) == 0
    rows = {
        row["file"]: row["predicted"]
        for row in csv.DictReader((tmp_path / "found.csv").read_text().splitlines())
    }
    predictor = Predictor.load(file)
    for number in (0, 1):
        alone = predictor.predict(zoo[0].params, torch.full((1, 1), float(number))).item()
        assert rows[f"{number}.pt"] == f"{alone:.3f}"


def test_nothing_to_predict(
    trained: tuple[Path, Zoo], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = trained
    empty = tmp_path / "empty"
    empty.mkdir()
    assert predict.main([str(empty), f"--predictor={file}"]) == 2
    assert "there is no .pt, .pth, .safetensors file in" in capsys.readouterr().err
    torch.save(nn.Linear(3, 2).state_dict(), empty / "linear.pt")
    assert predict.main([str(empty), f"--predictor={file}"]) == 2
    captured = capsys.readouterr()
    assert "not supported: linear.pt" in captured.out
    assert "the predictor reads layers.0.weight 3x1x3x3" in captured.err
    assert predict.main([str(empty), "--predictor=nobody"]) == 2
    assert "no file 'nobody', and no predictor of that name ships; expected" in capsys.readouterr().err
    assert predict.main([str(empty / "linear.pt"), f"--predictor={file}"]) == 2
    assert "linear.pt' is a file, expected a folder" in capsys.readouterr().err
