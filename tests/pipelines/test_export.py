"""`mamba-seq export`: programs that give the model's outputs, for any length, without this package; what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_seq import MambaConfig, ModelConfig, ModelError, SaShiMiConfig, exporting, from_pretrained
from mamba_seq.heads import MODELS
from mamba_seq.kernels import selective_scan
from mamba_seq.kernels._library import plain_operators
from mamba_seq.kernels.selective_scan.reference import selective_scan_reference

LENGTHS = (1, 63, 1000, 2049)
pytestmark = [
    pytest.mark.usefixtures("_nothing_compiled"),
    # torch.export.load reads weights in place, and never writes them
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]


def save(folder: Path, task: str = "sequence-classification", ssm: str = "selective", **fields: Any) -> Path:
    torch.manual_seed(0)
    labels = [] if task == "language-model" else ["a", "b", "c"]
    backbone = MambaConfig(d_model=12, n_layer=1, d_state=5, ssm=ssm)  # type: ignore[arg-type]
    config = ModelConfig(**{"task": task, "backbone": backbone, "labels": labels, "vocab_size": 5, **fields})
    model = MODELS[task](config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" in name or "head" in name:
                parameter.mul_(20)
    return model.save_pretrained(folder)


def inputs(length: int, masked: bool) -> tuple[torch.Tensor, ...]:
    tokens = torch.randint(0, 5, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length // 3 + 1 :] = False
    return (tokens, mask) if masked else (tokens,)


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert want.std() > 0.1, "a model that says little tells little"


WITHOUT_US = """
import json, sys, torch
program, given, out, key = sys.argv[1:]
extra = {key: ""}
run = torch.export.load(program, extra_files=extra).module()
results = [run(*arguments) for arguments in torch.load(given)]
assert "mamba_seq" not in sys.modules
torch.save(results, out)
print(json.loads(extra[key])["labels"])
"""


def test_a_classifier_in_torch_without_this_package(run: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", alphabet="dna")
    result = run("export", folder, "-o", tmp_path / "m.pt2", "--mask")
    assert (result.code, result.out) == (0, ""), result.err
    assert "for batches of any size and sequences of any length" in result.err
    given = [inputs(length, masked=True) for length in LENGTHS]
    torch.save(given, tmp_path / "given")
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_US]
    files = [str(tmp_path / name) for name in ("m.pt2", "given", "out")]
    done = subprocess.run(
        [*command, *files, exporting.CONFIG_KEY], capture_output=True, text=True, cwd=tmp_path, timeout=100
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout == "['a', 'b', 'c']\n"
    model = from_pretrained(folder)
    with torch.no_grad():
        for arguments, got in zip(given, torch.load(tmp_path / "out"), strict=True):
            assert_same(got, model(*arguments))


def test_a_classifier_in_onnx(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs mamba-seq[export]")
    onnx = pytest.importorskip("onnx", reason="needs mamba-seq[export]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs mamba-seq[export]")
    folder = save(tmp_path / "m")
    result = run("export", folder, "-o", tmp_path / "m.onnx", "--mask")
    assert (result.code, result.out) == (0, ""), result.err
    assert result.err.count("\n") == 1
    proto = onnx.load(tmp_path / "m.onnx")
    assert {node.domain for node in proto.graph.node} <= {"", *(f.domain for f in proto.functions)}
    assert [node.op_type for node in proto.graph.node].count("Scan") == 1
    assert json.loads({p.key: p.value for p in proto.metadata_props}["labels"]) == ["a", "b", "c"]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("inputs", ["batch", "length"]),
        ("mask", ["batch", "length"]),
    ]
    model = from_pretrained(folder)
    for length in LENGTHS:
        tokens, mask = inputs(length, masked=True)
        got = session.run(["outputs"], {"inputs": tokens.numpy(), "mask": mask.numpy()})[0]
        with torch.no_grad():
            assert_same(torch.from_numpy(got), model(tokens, mask))


def test_both_strands_and_positions(tmp_path: Path) -> None:
    """The exporter holds the program to the model, and raises where they differ."""
    fields = {"complement": [3, 2, 1, 0, 4], "positions": 64, "pooling": "max"}
    assert exporting.export_torch(from_pretrained(save(tmp_path / "m", **fields)), mask=True)


def test_one_length_of_numbers_with_an_output_a_position(tmp_path: Path) -> None:
    model = from_pretrained(save(tmp_path / "m", "token-regression", vocab_size=None, input_features=3))
    (tmp_path / "m.pt2").write_bytes(exporting.export_torch(model, length=65))
    run = torch.export.load(tmp_path / "m.pt2").module()
    series = torch.randn(5, 65, 3)
    with torch.no_grad():
        assert_same(run(series), model(series))
    with pytest.raises(AssertionError, match="== 65"):
        run(series[:, 1:])


@pytest.mark.parametrize("G", [0, 2])
def test_the_scan_is_the_reference(G: int) -> None:
    """Groups of B and C, an initial state and the final one too, over several chunks of the loop."""
    torch.manual_seed(0)
    L, D, N = 131, 4, 3
    shape = (2, L, G, N) if G else (2, L, N)
    arguments = {
        "u": torch.randn(2, L, D),
        "delta": torch.randn(2, L, D),
        "A": -torch.rand(D, N) * 4,
        "B": torch.randn(shape),
        "C": torch.randn(shape),
        "D": torch.randn(D),
        "z": torch.randn(2, L, D),
        "delta_bias": torch.randn(D),
        "delta_softplus": True,
        "initial_state": torch.randn(2, D, N),
    }
    with torch.no_grad(), plain_operators():
        got = selective_scan(**arguments, return_final_state=True)
    for one, want in zip(got, selective_scan_reference(**arguments), strict=True):
        torch.testing.assert_close(one, want, rtol=1e-5, atol=1e-5)


def test_scans_that_are_not_exported() -> None:
    u, A, constant = torch.randn(1, 5, 2), -torch.rand(2, 3), torch.randn(2, 3)
    B = torch.randn(1, 5, 3)
    for changes in (
        {"A": torch.complex(A, A), "B": torch.complex(B, B), "C": torch.complex(B, B)},
        {"B": constant},
        {"cu_seqlens": torch.tensor([0, 5], dtype=torch.int32)},
    ):
        with plain_operators(), pytest.raises(ValueError, match="is exported for padded sequences, real A"):
            selective_scan(**{"u": u, "delta": u, "A": A, "B": B, "C": B, **changes})


@pytest.mark.parametrize("wrong", [lambda out: out + 2e-3, lambda out: out * float("nan"), lambda out: out[:1]])
def test_a_program_that_differs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any, wrong: Any
) -> None:
    class Traced:
        def module(self) -> Any:
            return lambda *arguments: wrong(model(*arguments))

    folder = save(tmp_path / "m")
    model = from_pretrained(folder)
    monkeypatch.setattr(exporting, "_traced", lambda *arguments: Traced())
    monkeypatch.setattr(torch.export, "save", lambda *arguments, **more: None)
    result = run("export", folder, "-o", tmp_path / "m.pt2")
    assert (result.code, result.out) == (1, "")
    assert "the program gives other outputs than the model" in result.err
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.parametrize(
    ("task", "fields", "words"),
    [
        ("sequence-classification", {"ssm": "complex"}, "ssm is 'complex', expected 'selective'"),
        ("sequence-classification", {"ssm": "time-invariant"}, "ssm is 'time-invariant', expected 'selective'"),
        ("language-model", {"backbone": SaShiMiConfig(d_model=8, n_layer=1, pool=[2])}, "the backbone is a sashimi"),
        ("language-model", {"labels": ["a", "b"]}, "the model is conditional"),
    ],
    ids=["complex", "time-invariant", "sashimi", "conditional"],
)
def test_models_that_are_refused(tmp_path: Path, run: Any, task: str, fields: dict[str, Any], words: str) -> None:
    folder = save(tmp_path / "m", task, **fields)
    with pytest.raises(ModelError, match=words):
        exporting.export_torch(from_pretrained(folder))
    result = run("export", folder, "-o", tmp_path / "m.onnx")
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_names_that_say_no_format_and_missing_packages(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "m")
    result = run("export", folder, "-o", tmp_path / "m.bin")
    assert result.code == 1
    assert "expected a name that ends in .pt2 (torch.export) or .onnx" in result.err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = run("export", folder, "-o", tmp_path / "m.onnx")
    assert result.code == 1
    assert "ONNX needs the package onnxscript, which is not installed: pip install 'mamba-seq[export]'" in result.err
