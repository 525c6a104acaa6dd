"""Fine-tuning from the command line: each task learns a small task, killed runs go on, wrong data are refused."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from sklearn.datasets import load_digits

from mamba_seq import MambaConfig, ModelConfig, ModelError, from_pretrained
from mamba_seq.heads import MODELS, LanguageModel
from mamba_seq.pipelines.finetune import module, scores
from mamba_seq.pipelines.finetune.lora import merge_adapters
from mamba_seq.pipelines.finetune.recipe import FinetuneRecipe
from mamba_seq.pipelines.finetune.run import main
from mamba_seq.pipelines.train.module import NO_DECAY
from mamba_seq.pipelines.train.recipe_fields import OptimConfig
from tests.pipelines.conftest import Run

RECIPE = """
kind: finetune
model: {d_model: 16, n_layer: 1, d_state: 4}
epochs: 6
batch_size: 16
patience: 6
log_every: 2
optim: {lr: 0.02}
"""


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "RESAMPLES", 20)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


def letters(rng: np.random.Generator, length: int, chances: list[float] | None = None, of: str = "ACGT") -> str:
    return "".join(rng.choice(list(of), length, p=chances))


def dna(path: Path, n: int = 120, head: str = "sequence,label") -> Path:
    """Sequences rich in A and T, or in G and C, of lengths from 20 to 40."""
    rng = np.random.default_rng(0)
    kinds = {"poor": [0.4, 0.1, 0.1, 0.4], "rich": [0.1, 0.4, 0.4, 0.1]}
    rows = [f"{letters(rng, int(rng.integers(20, 41)), kinds[k])},{k}" for k in ("poor", "rich") for _ in range(n // 2)]
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def results(run: Path) -> dict[str, float]:
    record = json.loads((run / "model" / "record.json").read_text())
    return {name: each["value"] for name, each in record["results"].items()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on DNA from scratch that nothing interrupted."""
    import torch

    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(RECIPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests, or the sums round differently
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "RESAMPLES", 20)
        main(str(dna(folder / "d.csv")), folder / "run", None, str(folder / "tiny.yaml"), OPTIONS)
    torch.set_num_threads(threads)
    return folder


OPTIONS = ["--mutation_fraction=0.1", "--mask_fraction=0.1", "--dropout=0.1", "--ema=0.9", "--pooling=mean"]


def test_a_run_ends_in_a_model_that_says_the_same_from_its_folder_alone(whole: Path, run: Run) -> None:
    model = whole / "run" / "model"
    assert {path.name for path in model.iterdir()} == {
        "README.md",
        "calibration.png",
        "config.json",
        "confusion.png",
        "curves.png",
        "metrics.csv",
        "model.safetensors",
        "predictions.tsv",
        "recipe.yaml",
        "record.json",
        "roc.png",
        "splits.tsv",
    }
    assert results(whole / "run")["accuracy"] >= 0.9
    config = from_pretrained(model).config
    assert (config.labels, config.alphabet, config.strand) == (["poor", "rich"], "dna", "forward")
    card = (model / "README.md").read_text()
    assert "120 sequences (a table) of 20 to 40 positions" in card
    assert str(whole) not in card
    assert str(whole) not in (model / "splits.tsv").read_text()
    # the test sequences through `predict`, and through `evaluate`
    saved = rows_of(model / "predictions.tsv")
    splits = rows_of(model / "splits.tsv")
    table = whole / "again.csv"
    lines = (whole / "d.csv").read_text().splitlines()
    chosen = [lines[i + 1] + f",{row['split']}" for i, row in enumerate(splits)]
    table.write_text("\n".join(["sequence,label,split", *chosen]) + "\n")
    said = run("predict", table, "-m", model)
    assert said.code == 0, said.err
    again = {line[0]: line[4:] for line in said.rows}
    assert [again[row["id"]] for row in saved] == [list(row.values())[4:] for row in saved]
    measured = run("evaluate", table, "-m", model, "--only", "test")
    assert measured.code == 0, measured.err
    assert {row[0]: float(row[1]) for row in measured.rows} == pytest.approx(results(whole / "run"), abs=1e-4)


def test_predict_says_what_it_cannot_read(whole: Path, run: Run, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,sequence\na,AATTAATTAATTA\nb,\nc,AC!T\n")
    said = run("predict", table, "-m", whole / "run" / "model", "-o", tmp_path / "out.tsv")
    assert said.code == 0
    assert "'!' at position 3 of 'c'" in said.err
    rows = rows_of(tmp_path / "out.tsv")
    assert [(row["id"], row["status"], row["prediction"]) for row in rows] == [
        ("a", "ok", "poor"),
        ("b", "empty", "NA"),
        ("c", "invalid", "NA"),
    ]
    table.write_text("sequence,label\nAATT,neither\n")
    refused = run("evaluate", table, "-m", whole / "run" / "model")
    assert refused.code == 1
    assert "label 'neither' came 1 times, which the model does not know; it knows poor, rich" in refused.err


@pytest.mark.parametrize(("where", "at"), [("training_step", 20), ("validation_step", 3)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, at: int
) -> None:
    class Killed(Exception):
        pass

    count = 0
    original = getattr(module.FinetuneTraining, where)

    def dies(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == at:
            raise Killed
        return original(*arguments)

    data = str(whole / "d.csv")
    with monkeypatch.context() as patch:
        patch.setattr(module.FinetuneTraining, where, dies)
        with pytest.raises(Killed):
            main(data, tmp_path / "run", None, recipe, OPTIONS)
    assert not (tmp_path / "run" / "model").exists()
    main(data, tmp_path / "run", None, recipe, OPTIONS)
    for name in ("model/model.safetensors", "model/predictions.tsv", "metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / "run" / name).read_bytes()


def test_a_run_that_was_killed_after_its_last_validation_takes_no_step_more(
    whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mamba_seq.pipelines.finetune.run.finish", lambda *arguments: arguments[4])
    still = [*OPTIONS, "--patience=1", "--optim.lr=1e-30", "--optim.min_lr=0"]
    steps = [main(str(whole / "d.csv"), tmp_path / "run", None, recipe, still) for _ in range(2)]
    assert steps[0] == steps[1]


def test_a_finished_run_is_left_alone_without_force(whole: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    command = ("finetune", whole / "d.csv", "--from-scratch", whole / "tiny.yaml", "-o", tmp_path / "run")
    refused = run(*command)
    assert refused.code == 1
    assert "holds a finished run; name another folder, or say --force" in refused.err
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
    assert run(*command, "--force", "--epochs=1").code == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("tune", ["full", "head", "lora"])
def test_a_pretrained_model_is_fine_tuned(tune: str, tmp_path: Path, run: Run) -> None:
    if tune == "lora":
        pytest.importorskip("peft")
    backbone = MambaConfig(d_model=16, n_layer=2, d_state=4)
    base = LanguageModel(ModelConfig(task="language-model", backbone=backbone, vocab_size=5, alphabet="dna"))
    base.save_pretrained(tmp_path / "base")
    done = run(
        *("finetune", dna(tmp_path / "d.csv", 80), "-m", tmp_path / "base", "-o", tmp_path / "run", "--tune", tune),
        *("--epochs=4", "--optim.lr=0.03", "--strand=both"),
    )
    assert done.code == 0, done.err
    assert results(tmp_path / "run")["accuracy"] >= 0.7
    start, end = (from_pretrained(folder).state_dict() for folder in (tmp_path / "base", tmp_path / "run" / "model"))
    changed = {
        name for name in start if name.startswith(("backbone", "embedding")) and not start[name].equal(end[name])
    }
    if tune == "head":
        assert not changed
    elif tune == "lora":
        assert changed
        assert all(name.endswith(("in_proj.weight", "out_proj.weight")) for name in changed)
    else:
        assert "embedding.weight" in changed
    assert from_pretrained(tmp_path / "run" / "model").config.strand == "both"


@pytest.mark.parametrize("ones", [5, 8, 11])
def test_one_answer_for_all_has_no_correlation(ones: int) -> None:
    import torch

    truth = torch.tensor([1] * ones + [0] * (16 - ones))
    assert scores._mcc(torch.ones(16, dtype=torch.int64), truth, 2) == 0
    assert scores._mcc(truth, torch.ones(16, dtype=torch.int64), 2) == 0
    assert scores._mcc(truth, truth, 2) == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:No .* samples")
def test_classes_that_the_examples_lack_do_not_count() -> None:
    import torch

    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)  # of five classes
    found = rng.random((60, 5))
    found[np.arange(60), truth] += 0.6
    found /= 2
    classes = scores._of_classes(torch.tensor(found), torch.tensor(truth), 5)
    areas = [metrics.roc_auc_score(truth == k, found[:, k]) for k in range(3)]
    recalls = [(found.argmax(1) == truth)[truth == k].mean() for k in range(3)]
    assert set(found.argmax(1)) - set(truth)  # some are taken for a class that is not there
    assert classes["auroc"] == pytest.approx(np.mean(areas), abs=1e-5)
    assert classes["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-5)
    several = np.stack([truth == 0, truth == 1, truth == 4, truth < 3], axis=1).astype(int)  # none and all of two
    labels = scores._of_labels(torch.tensor(found[:, :4]), torch.tensor(several), 4)
    said = found[:, :4] >= 0.5
    f1 = [metrics.f1_score(several[:, k], said[:, k]) for k in range(4) if several[:, k].any() or said[:, k].any()]
    assert labels["f1_micro"] == pytest.approx(metrics.f1_score(several, said, average="micro"), abs=1e-5)
    assert labels["f1_macro"] == pytest.approx(np.mean(f1), abs=1e-5)
    assert labels["auroc"] == pytest.approx(np.mean(areas[:2]), abs=1e-5)
    precision = [metrics.average_precision_score(several[:, k], found[:, k]) for k in (0, 1, 3)]
    assert labels["average_precision"] == pytest.approx(np.mean(precision), abs=1e-5)
    nothing = scores._of_labels(torch.tensor(found[:, :1]), torch.zeros(60, 1, dtype=torch.int64), 1)
    assert np.isnan(nothing["auroc"])
    assert scores.to_json({"auroc": {"value": nothing["auroc"], "low": 0.5}}) == {"auroc": {"value": None, "low": 0.5}}


def test_what_is_taken_over_learns_more_slowly_the_deeper_it_is() -> None:
    backbone = MambaConfig(d_model=8, n_layer=2, d_state=2)
    config = ModelConfig(
        task="sequence-classification", backbone=backbone, vocab_size=5, alphabet="dna", labels=["a", "b"]
    )
    for start, factors in (("base", {"backbone_rate": 0.5, "layer_decay": 0.1}), ("base", {}), (None, {})):
        recipe = FinetuneRecipe(start=start, model=None if start else backbone, **factors)
        training = module.FinetuneTraining(MODELS[config.task](config), recipe, None, OptimConfig(lr=0.01))  # type: ignore[arg-type]
        optimizer = training.configure_optimizers()["optimizer"]
        names = {id(p): name for name, p in training.model.named_parameters()}
        rates = {names[id(p)]: g["initial_lr"] for g in optimizer.param_groups for p in g["params"]}
        assert set(rates) == set(names.values())
        expected = dict.fromkeys(names.values(), 0.01)
        if factors:
            assert rates["embedding.weight"] == pytest.approx(0.00005)
            for name in names.values():
                if name.startswith("backbone."):
                    expected[name] = 0.0005 if name.startswith("backbone.layers.0.") else 0.005
            expected["embedding.weight"] = 0.00005
        assert rates == pytest.approx(expected)
        decays = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert {name for name, decay in decays.items() if not decay} == {n for n in decays if n.endswith(NO_DECAY)}
    u_net: Any = SimpleNamespace(backbone=object())
    with pytest.raises(ModelError, match=r"layer_decay is 0\.5, and the saved model is a U-Net"):
        module.FinetuneTraining(u_net, FinetuneRecipe(start="base", layer_decay=0.5), None, OptimConfig())  # type: ignore[arg-type]


def test_a_folder_a_class_is_evaluated_record_by_record(whole: Path, run: Run, tmp_path: Path) -> None:
    for label, letter in (("poor", "AT"), ("rich", "GC")):
        (tmp_path / "d" / label).mkdir(parents=True)
        (tmp_path / "d" / label / "a.fa").write_text(f">a\n{letter * 9}\n>b\n{letter * 8}\n")
    found = run("evaluate", tmp_path / "d", "-m", whole / "run" / "model", "--records", "--format", "json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["metrics"]["accuracy"]["value"] == 1.0
    assert json.loads(found.out)["examples"] == 4


def test_classify_reads_the_strand_that_the_model_was_trained_on(whole: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nATTATATTAATACCA\n")
    words = "was trained on the given strand alone"
    default, forward, both = (
        run("classify", tmp_path / "a.fa", "-m", whole / "run" / "model", *strand)
        for strand in ([], ["--strand", "forward"], ["--strand", "both"])
    )
    assert default.code == 0, default.err
    assert default.out == forward.out != both.out
    assert words not in default.err + forward.err
    assert words in both.err


def test_examples_that_cannot_be_used_are_left_out_and_told(recipe: str, run: Run, tmp_path: Path) -> None:
    data = dna(tmp_path / "d.csv", 40)
    data.write_text(data.read_text() + ",rich\nACGT,\n")
    done = run("finetune", data, "--from-scratch", recipe, "-o", tmp_path / "run", "--epochs=1")
    assert done.code == 0, done.err
    assert f"1 examples have no sequence and are left out, the first is {data}, line 42" in done.err
    assert f"1 examples have no label and are left out, the first is {data}, line 43" in done.err


def test_sound(recipe: str, run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    for label, hertz in (("low", 50), ("high", 400)):
        (tmp_path / "d" / label).mkdir(parents=True)
        for i in range(24):
            wave = np.sin(2 * np.pi * (hertz * np.arange(120) / 2000 + rng.random()))
            soundfile.write(tmp_path / "d" / label / f"{i}.wav", wave, 2000)
    found = learn(tmp_path, recipe, tmp_path / "d", "--data.sample_rate=2000", "--epochs=6", "--batch_size=8")
    assert found["accuracy"] >= 0.75
    config = from_pretrained(tmp_path / "run" / "model").config
    assert (config.codec, config.sample_rate, config.vocab_size) == ("mu-law-8bit-minmax", 2000, 256)
    said = run("predict", tmp_path / "d", "-m", tmp_path / "run" / "model")
    assert len(said.rows) == 48
    loose = run("predict", tmp_path / "d" / "high", "-m", tmp_path / "run" / "model")
    assert [row[3:] for row in loose.rows] == [row[4:] for row in said.rows[:24]]
    alone = run("predict", tmp_path / "d" / "high" / "0.wav", "-m", tmp_path / "run" / "model")
    assert alone.rows == loose.rows[:1]
    refused = run("finetune", tmp_path / "d" / "high", "--from-scratch", recipe, "-o", tmp_path / "other")
    assert "a folder without classes, sound: put the files of each class into a folder" in refused.err


def learn(tmp_path: Path, recipe: str, data: Path, *options: str) -> dict[str, float]:
    main(str(data), tmp_path / "run", None, recipe, options)
    return results(tmp_path / "run")


def test_several_labels(tmp_path: Path, recipe: str) -> None:
    rng = np.random.default_rng(1)
    rows = [letters(rng, 12, of="AG" if i % 2 else "ACGT") for i in range(160)]
    text = [f"{s},{'c' * ('C' in s)};{'g' * (s.count('G') > 4)}" for s in rows]
    path = tmp_path / "d.csv"
    path.write_text("\n".join(["sequence,label", *(t if not t.endswith(",;") else t[:-1] + "-" for t in text)]) + "\n")
    found = learn(tmp_path, recipe, path, "--task=multi-label", "--epochs=12")
    assert found["auroc"] > 0.9


def test_regression_keeps_its_scale(tmp_path: Path, recipe: str, run: Run) -> None:
    rng = np.random.default_rng(2)
    rows = [letters(rng, 30) for _ in range(160)]
    path = tmp_path / "d.csv"
    path.write_text("\n".join(["sequence,y", *(f"{s},{1000 + 25.5 * s.count('G')}" for s in rows)]) + "\n")
    found = learn(tmp_path, recipe, path, "--epochs=12")
    assert found["spearman"] > 0.9
    config = from_pretrained(tmp_path / "run" / "model").config
    assert config.target_mean == pytest.approx([1000 + 25.5 * np.mean([s.count("G") for s in rows])], abs=20)
    path.write_text("sequence\n" + "A" * 26 + "GGGG\n" + "G" * 12 + "A" * 18 + "\n")
    few, many = (float(row[3]) for row in run("predict", path, "-m", tmp_path / "run" / "model").rows)
    assert few == pytest.approx(1102, abs=80)
    assert many == pytest.approx(1306, abs=80)


def test_protein_positions_learn_what_a_residue_is(tmp_path: Path, recipe: str) -> None:
    rng = np.random.default_rng(3)
    chains = [letters(rng, int(rng.integers(15, 30)), of="ACDEFGHIKLMNPQRSTVWY") for _ in range(80)]
    greasy = str.maketrans({c: "b" if c in "AILMFWVC" else "e" for c in "ACDEFGHIKLMNPQRSTVWY"})
    path = tmp_path / "d.fa"
    path.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(chains)))
    labels = tmp_path / "l.tsv"
    labels.write_text("id\tlabel\n" + "".join(f"p{i}\t{s.translate(greasy)}\n" for i, s in enumerate(chains)))
    found = learn(tmp_path, recipe, path, f"--data.labels_file={labels}", "--epochs=8")
    config = from_pretrained(tmp_path / "run" / "model").config
    assert (config.task, config.alphabet, config.labels) == ("token-classification", "protein", ["b", "e"])
    assert found["accuracy"] > 0.95


def test_proteins_of_two_bacteria(tmp_path: Path, recipe: str) -> None:
    """Reading frames of a genome of 33 % and of one of 66 % G and C: which amino acids they use tells them apart."""
    data = Path(__file__).with_name("proteins.tsv")
    found = learn(tmp_path, recipe, data, "--epochs=10", "--test_fraction=0.25")
    assert from_pretrained(tmp_path / "run" / "model").config.alphabet == "protein"
    assert found["accuracy"] > 0.8
    assert found["auroc"] > 0.87


def test_series_find_spikes(tmp_path: Path, recipe: str, run: Run) -> None:
    rng = np.random.default_rng(4)
    lines = ["who,x,other,label"]
    for s in range(30):
        spikes = rng.random(30) < 0.1
        for t in range(30):
            lines.append(
                f"s{s},{500 + rng.normal() + 40 * spikes[t]:.3f},{rng.normal():.3f},{'spike' if spikes[t] else 'ok'}"
            )
    lines[-1] = lines[-1].rpartition(",")[0] + ","  # a step without a label
    path = tmp_path / "d.csv"
    path.write_text("\n".join(lines) + "\n")
    options = ["--data.values=[x,other]", "--data.series=who", "--epochs=12", "--batch_size=8"]
    found = learn(tmp_path, recipe, path, *options)
    config = from_pretrained(tmp_path / "run" / "model").config
    assert (config.task, config.input_features) == ("token-classification", 2)
    assert found["f1_macro"] > 0.95
    said = run("predict", path, "-m", tmp_path / "run" / "model", "--values", "x,other", "--series", "who")
    truth = [line.split(",")[3] for line in lines[1:31]]
    agree = np.mean([a == b for a, b in zip(said.rows[0][4].split(), truth, strict=True)])
    assert agree > 0.9
    assert [len(said.rows[-1][3].split()), said.rows[-1][3].split()[-1]] == [30, "-"]


@pytest.fixture(scope="module")
def strokes() -> tuple[np.ndarray, np.ndarray]:
    """1,797 handwritten digits, read from left to right: 8 steps of 8 pixels, 0 to 1; and which they are."""
    digits = load_digits()
    return digits.images.transpose(0, 2, 1).astype(np.float32) / 16, digits.target


def test_series_of_handwriting_are_digits(tmp_path: Path, recipe: str, strokes: Any) -> None:
    steps, digits = strokes
    np.save(tmp_path / "d.npy", steps[:500])
    labels = tmp_path / "l.tsv"
    labels.write_text("id\tlabel\n" + "".join(f"{i}\td{digit}\n" for i, digit in enumerate(digits[:500])))
    found = learn(tmp_path, recipe, tmp_path / "d.npy", f"--data.labels_file={labels}")
    config = from_pretrained(tmp_path / "run" / "model").config
    assert (config.task, config.input_features, len(config.labels)) == ("sequence-classification", 8, 10)
    assert found["accuracy"] > 0.9


def test_ctc_reads_numbers_in_handwriting_without_an_alignment(tmp_path: Path, recipe: str, strokes: Any) -> None:
    steps, digits = strokes
    which = np.random.default_rng(7).integers(len(digits), size=(900, 3))
    np.save(tmp_path / "d.npy", steps[which].reshape(-1, 24, 8))
    labels = tmp_path / "l.tsv"
    numbers = ["".join(map(str, digits[three])) for three in which]
    labels.write_text("id\tlabel\n" + "".join(f"{i}\t{number}\n" for i, number in enumerate(numbers)))
    fields = [f"--data.labels_file={labels}", "--task=ctc", "--epochs=18", "--patience=18"]
    assert learn(tmp_path, recipe, tmp_path / "d.npy", *fields)["character_error_rate"] < 0.15
    config = from_pretrained(tmp_path / "run" / "model").config
    assert (config.labels, config.input_features) == (list("0123456789"), 8)


def test_the_next_token(tmp_path: Path, recipe: str, run: Run) -> None:
    rng = np.random.default_rng(6)
    path = tmp_path / "d.fa"
    path.write_text("".join(f">{i}\n{('ACGT' * 20)[i % 4 :][: 30 + i // 4]}\n" for i in rng.permutation(60)))
    found = learn(tmp_path, recipe, path, "--epochs=10")
    assert found["bits_per_token"] < 0.5
    said = run("predict", path, "-m", tmp_path / "run" / "model")
    assert said.out.startswith("id\tlength\tstatus\tbits_per_token\n")


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, run: Run, recipe: str) -> None:
    data = dna(tmp_path / "d.csv")
    target = ("-o", tmp_path / "run")
    for arguments, code, message in (
        ((data,), 2, "name one of -m MODEL, to fine-tune it, and --from-scratch RECIPE"),
        ((data, "--from-scratch", recipe, "--tune", "lora"), 1, "the model is random"),
        ((data, "--from-scratch", recipe, "--backbone_rate=0.1"), 1, "0.1, and no saved model (-m) is trained in full"),
        ((data, "--from-scratch", recipe, "--layer_decay=0"), 1, "layer_decay is 0.0, expected above 0, at most 1"),
        ((data, "--from-scratch", recipe, "--epochs=0"), 1, "epochs is 0, expected at least 1"),
        ((data, "--from-scratch", "mamba-dna.bacteria11"), 1, "a recipe for 'mamba-seq train'"),
        ((data, "--from-scratch", recipe, "--label", "kind"), 1, "'kind' was expected as label"),
        ((tmp_path / "none", "--from-scratch", recipe), 1, "no such file or folder"),
    ):
        refused = run("finetune", *arguments, *target)
        assert refused.code == code, refused.err
        assert message in refused.err
        assert not (tmp_path / "run").exists()


def test_merged_adapters_compute_what_they_did() -> None:
    pytest.importorskip("peft")
    import torch

    from mamba_seq.pipelines.finetune.lora import add_adapters
    from mamba_seq.pipelines.finetune.recipe import LoraConfig

    backbone = MambaConfig(d_model=16, n_layer=2, d_state=4)
    model = LanguageModel(ModelConfig(task="language-model", backbone=backbone, vocab_size=5)).eval()
    names = set(model.state_dict())
    add_adapters(model, LoraConfig(rank=2, modules=["in_proj", "x_proj", "dt_proj", "out_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    tokens = torch.randint(0, 5, (2, 9))
    with torch.inference_mode():
        before = model(tokens)
    merge_adapters(model)
    assert set(model.state_dict()) == names
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-4)
