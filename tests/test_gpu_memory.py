"""The script that measures training memory: sizes of its models, and its check, on the CPU."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mamba_seq.pipelines.errors import CheckError

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_memory.py"
CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_memory", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "COMPILE", {"dynamic": True, "backend": "aot_eager"})  # no compiler on this machine
    return module


@pytest.mark.parametrize(("name", "parameters"), [("mamba-seq", 129_135_360), ("Transformer", 125_243_904)])
def test_some_125_million_parameters(script: ModuleType, name: str, parameters: int) -> None:
    def count(layers: int) -> int:
        model = script.make(name, CPU, layers=layers, vocabulary=1, compiled=False)
        return sum(p.numel() for p in model.parameters())

    two, four = count(2), count(4)
    assert two + 11 * (four - two) + (script.VOCABULARY - 1) * script.WIDTH == parameters


# dynamo looks at what goes into a block, and filters its warning in a way that an error gets past
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.usefixtures("_nothing_compiled")
@pytest.mark.parametrize("name", ["mamba-seq, compiled", "mamba-seq, checkpointed", "Transformer"])
def test_check_on_the_cpu(script: ModuleType, name: str) -> None:
    assert script.check(name, CPU) < 2e-2


def test_a_model_that_differs_is_refused(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = script.loss_of
    monkeypatch.setattr(script, "compiled_loss", lambda: lambda *arguments: 1.1 * plain(*arguments))
    with pytest.raises(CheckError, match="mamba-seq: loss"):
        script.check("mamba-seq", CPU)


def test_the_table_has_the_papers_figures(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"model": "mamba-seq", "batch": batch, "peak_gb": gb} for batch, gb in ((1, "4.00"), (32, ""))]
    script.show(rows, [1, 32])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[-2:]] == [["1", "4.00", "4.8", "4.6"], ["32", "-", "38.2", "34.5"]]
