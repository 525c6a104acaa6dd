"""A training run's folder: whether a call may begin in it, go on in it, or must leave it alone.

Nothing is written or removed before the recipe and its data have been found good, so that a misspelt path neither
costs an earlier run nor binds the folder to a recipe that cannot run.
"""

import shutil
from pathlib import Path

from mamba_seq.errors import ModelError
from mamba_seq.saving import CONFIG_FILE, write_whole

RECIPE, SPLITS, METRICS, CURVES = "recipe.yaml", "splits.tsv", "metrics.csv", "curves.png"
CHECKPOINT = "checkpoints/last.ckpt"
BASELINE, CALIBRATION, EVALUATION = "baseline.json", "calibration.json", "evaluation.json"
MODEL, STAGING = "model", "model.partial"
REFIT, STAGES = "refit.json", "stages"
OWN = (RECIPE, SPLITS, METRICS, CURVES, "checkpoints", BASELINE, CALIBRATION, EVALUATION, REFIT, STAGES, MODEL, STAGING)
"""All that a run writes, and all that `--force` removes."""


def check_folder(run: Path, recipe_text: str, force: bool) -> None:
    """Refuse a folder that is finished, belongs to another recipe, or is not a run's; change nothing.

    Raises:
        ModelError: with what to do about it.
    """
    if run.exists() and not run.is_dir():
        raise ModelError(f"{run} is a file, expected the folder of a run; name another folder")
    if (run / CONFIG_FILE).is_file():
        raise ModelError(f"{run} is a saved model, expected the folder of a run; name another folder")
    saved = run / RECIPE
    if not saved.is_file():
        if force and run.is_dir() and any(run.iterdir()):
            raise ModelError(f"{run} is no run: it has no {RECIPE}, so --force does not remove it; name another folder")
        in_the_way = [name for name in OWN if (run / name).exists()]
        if in_the_way:
            raise ModelError(
                f"{run} is no run, it has no {RECIPE}, but a run would write over its {' and '.join(in_the_way)}; "
                "name another folder"
            )
        return
    if force:
        return
    if (run / MODEL / CONFIG_FILE).is_file():
        raise ModelError(f"{run} holds a finished run; name another folder, or say --force to begin anew")
    if saved.read_text(encoding="utf-8") != recipe_text:
        raise ModelError(f"{run} was begun with another recipe (see {saved}); name another folder, or say --force")


def begin(run: Path, recipe_text: str, splits: str, what: str, force: bool) -> None:
    """Make the folder of a run, or go on in it; with `force`, remove what an earlier run left, and nothing else.

    Args:
        run: the folder.
        recipe_text: of recipe.yaml.
        splits: of splits.tsv.
        what: the data are, for messages.
        force: begin anew.

    Raises:
        ModelError: when a run would go on with other splits: what was held out would be trained on.
    """
    if force:
        for name in reversed(OWN):  # the recipe goes last and comes first: it says that the folder is a run's
            remove(run / name)
    elif (run / SPLITS).is_file() and (run / SPLITS).read_text(encoding="utf-8") != splits:
        raise ModelError(
            f"the {what} have changed since {run} was begun: their splits are not those of {run / SPLITS}; "
            f"bring the old {what} back, name another folder, or say --force"
        )
    run.mkdir(parents=True, exist_ok=True)
    write_whole(run / RECIPE, recipe_text.encode())
    write_whole(run / SPLITS, splits.encode())


def remove(path: Path) -> None:
    """Remove a file, a folder with what is in it, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
