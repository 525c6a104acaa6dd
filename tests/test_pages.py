"""The tutorials and docs/finetune.md do what they say, command by command."""

from pathlib import Path

import pytest

from mamba_seq.pipelines.finetune import scores
from tests.kernels.compare import one_thread
from tests.pages import DOCS, ROOT, Block, assert_prints, blocks_of, run_page

TUTORIALS = sorted(path.stem for path in (DOCS / "tutorials").glob("*.md") if path.stem != "index")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that has the examples, as a clone does."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scores, "RESAMPLES", 20)
    return tmp_path


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_tutorial_does_what_it_says(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = DOCS / "tutorials" / f"{name}.md"
    assert any(block.prints for block in blocks_of(page))
    with one_thread():
        run_page(page, capfd)


def test_the_commands_of_finetune_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with one_thread():
        run_page(DOCS / "finetune.md", capfd)
    head = (folder / "boxes.metrics.tsv").read_text().splitlines()
    assert head[0] == "metric\tvalue\tlow\thigh\texamples"
    assert float(head[1].split("\t")[1]) > 0.9
    table = (folder / "boxes.tsv").read_text()
    assert table.startswith("id\tlength\tstatus\ttruth\tprediction\tprobability\tp:box\tp:none")
    for name in ("boxes", "chains", "sensor", "numbers", "from_zoo"):
        assert (folder / name / "model" / "README.md").is_file()


@pytest.mark.parametrize("printed", ["a 0.91\n", "b 0.97\n", "a 0.97 more\n", "a 1\n", ""])
def test_the_runner_sees_what_a_page_gets_wrong(printed: str) -> None:
    with pytest.raises(AssertionError):
        assert_prints(printed, Block("bash", "echo\n", "a 0.97\n"))


def test_the_runner_lets_the_last_decimals_be() -> None:
    assert_prints("a  0.971\tb\n", Block("bash", "echo\n", "a 0.97 b\n"))
