"""What training refuses, recipes, data and folders, before it writes anything; and what --force removes."""

import shutil
from pathlib import Path

import pytest

from mamba_seq import ModelError, UnknownModelError
from mamba_seq.data_prep.errors import DataError
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.recipe import read_recipe
from mamba_seq.pipelines.train.run import main
from tests.pipelines.tiny_run import DROPOUT


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(UnknownModelError, match="no recipe is named 'soup'"):
        main("soup", "nowhere")


def test_overrides_and_misspelt_fields(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    fields, text = read_recipe(Path(recipe), ["--optim.lr=0.125", "--model.n_layer", "3"])
    assert fields.optim.lr == 0.125
    assert fields.model.n_layer == 3
    assert "lr: 0.125" in text
    with pytest.raises(SystemExit) as stop:
        read_recipe(Path(recipe), ["--optim.rate=1"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert "rate" in told
    assert "--print_config" in told
    assert told.count("\n") < 6


def test_bad_values_are_named(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_recipe(Path(recipe), ["--optim.lr=fast"])
    assert "optim.lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--optim.steps=0", "optim.steps is 0, expected at least 1"),
        ("--optim.lr=0", "optim.lr is 0.0, expected above 0"),
        ("--optim.grad_clip=0", "optim.grad_clip is 0.0, expected above 0"),
        ("--optim.beta2=1", "optim.beta2 is 1.0, expected 0 or more, below 1"),
        ("--optim.next_token_weight=-1", "optim.next_token_weight is -1.0, expected 0 or more"),
        ("--evaluation.windows_per_class=[1]", "expected one figure for each length"),
        ("--evaluation={lengths: [], windows_per_class: []}", r"evaluation.lengths is \[\], expected at least one"),
        ("--optim.minutes=0", "optim.minutes is 0.0, expected above 0, or null for a schedule of steps"),
        ("--evaluation.max_windows=-1", "evaluation.max_windows is -1, expected 0 for all, or more"),
        ("--evaluation.baseline_windows=0", "evaluation.baseline_windows is 0, expected at least 1"),
        ("--evidence_growth=1.5", "evidence_growth is 1.5, expected 0 to 1, or null"),
        ("--refit_windows=-1", "refit_windows is -1 and pooling"),
        ("--context=0", "context is 0, expected at least 1"),
        ("--log_every=0", "log_every is 0, expected at least 1"),
        ("--seed=-1", "seed is -1, expected 0 to 4294967295"),
        ("--model.dropout=1", "dropout is 1.0, expected 0 or more, below 1"),
    ],
)
def test_values_out_of_range_are_the_recipes_fault(recipe: str, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"is no recipe: .*{message}"):
        read_recipe(Path(recipe), [override])


def test_what_is_read_in_windows_is_whole_windows(recipe: str) -> None:
    with pytest.raises(RecipeError, match="a length of data is 100, expected at most context = 96, or a multiple"):
        read_recipe(Path(recipe), ["--evidence_growth=0.5", "--data.lengths=[32, 192, 100]"])


@pytest.mark.parametrize("force", [False, True])
def test_a_mistake_in_the_data_writes_and_removes_nothing(
    recipe: str, whole: Path, tmp_path: Path, force: bool
) -> None:
    mistakes = {
        "--data.root=nowhere": (DataError, "nowhere"),
        "--data.lengths=[4000]": (RecipeError, r"the recipe's data section cannot be used: lengths \[4000\]"),
        "--evaluation.lengths=[60, 4000]": (DataError, "no stretch of 4000 bases"),
    }
    if force:
        shutil.copytree(whole, tmp_path / "run")
    for override, (error, message) in mistakes.items():
        with pytest.raises(error, match=message):
            main(recipe, tmp_path / "run", [override], force=force)
    if force:
        assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    else:
        assert not (tmp_path / "run").exists()
    assert main(recipe, tmp_path / "run", force=force, max_minutes=1e-5) == tmp_path / "run"


def test_a_run_does_not_go_on_with_other_genomes(recipe: str, genomes: Path, tmp_path: Path) -> None:
    """Another genome moves the held-out regions: what was held out would be trained on."""
    shutil.copytree(genomes, tmp_path / "genomes")
    root = f"--data.root={tmp_path / 'genomes'}"
    run = main(recipe, tmp_path / "run", [root], max_minutes=1e-5)
    with (tmp_path / "genomes" / "low" / "g.fa").open("a") as file:
        file.write("ACGT" * 100 + "\n")
    with pytest.raises(ModelError, match="the genomes have changed since"):
        main(recipe, run, [root])


def test_a_run_of_another_recipe_is_left_alone(recipe: str, tmp_path: Path) -> None:
    main(recipe, tmp_path / "run", max_minutes=1e-5)
    with pytest.raises(ModelError, match="was begun with another recipe"):
        main(recipe, tmp_path / "run", ["--optim.lr=0.5"])


def test_a_finished_run_is_left_alone_unless_forced(recipe: str, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run") / "model"
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ModelError, match="holds a finished run"):
        main(recipe, tmp_path / "run", DROPOUT)
    assert (folder / "model.safetensors").read_bytes() == before
    main(recipe, tmp_path / "run", [*DROPOUT, "--seed=5"], force=True)
    assert (folder / "model.safetensors").read_bytes() != before


def test_folders_that_are_no_runs_are_left_alone(recipe: str, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(ModelError, match="file is a file, expected the folder of a run"):
        main(recipe, tmp_path / "file")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ModelError, match=r"would write over its metrics\.csv; name another folder"):
        main(recipe, tmp_path / "table")
    saved = shutil.copytree(whole / "model", tmp_path / "saved")
    for force in (False, True):
        with pytest.raises(ModelError, match="saved is a saved model, expected the folder of a run"):
            main(recipe, saved, force=force)
    assert (saved / "recipe.yaml").is_file()


def test_force_removes_nothing_that_is_no_run(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="is no run"):
        main(recipe, tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.txt").is_file()


def test_force_removes_what_a_run_wrote_and_nothing_else(recipe: str, tmp_path: Path) -> None:
    run = main(recipe, tmp_path / "run", max_minutes=1e-5)
    (run / "notes.txt").write_text("lr 0.01 was better")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "last.ckpt").write_text("of another run")
    (run / "model").symlink_to(tmp_path / "elsewhere")
    main(recipe, run, ["--seed=5"], force=True, max_minutes=1e-5)
    assert (run / "notes.txt").read_text() == "lr 0.01 was better"
    assert (tmp_path / "elsewhere" / "last.ckpt").is_file()
    assert not (run / "model").exists()
    assert "seed: 5" in (run / "recipe.yaml").read_text()
