"""Which strands classify reads: the model's choice, and never the other one twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mamba_seq import MambaConfig, ModelConfig
from mamba_seq.data_prep.alphabet import DNA
from mamba_seq.heads import SequenceClassifier
from mamba_seq.pipelines import evidence
from mamba_seq.pipelines.evidence import score

CPU = torch.device("cpu")
COMPLEMENT = [3, 2, 1, 0, 4]


def make(pooling: str = "mean", **fields: Any) -> SequenceClassifier:
    torch.manual_seed(0)
    config = ModelConfig(
        task="sequence-classification",
        labels=["a", "b", "c"],
        vocab_size=5,
        alphabet="dna",
        context=200,
        backbone=MambaConfig(d_model=16, n_layer=2, d_state=4),
        pooling=pooling,  # type: ignore[arg-type]
        **fields,
    )
    model = SequenceClassifier(config).eval()
    torch.nn.init.normal_(model.embedding.weight)
    return model


def windows(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 5, n).astype(np.uint8) for n in lengths]


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_an_equivariant_model_reads_long_windows_in_pieces(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(pooling, complement=COMPLEMENT)
    given = windows(1000, 63, 1, 999)
    whole = score(model, given, CPU)
    monkeypatch.setattr(evidence, "SHORTEST_PIECE", 128)
    np.testing.assert_allclose(score(model, given, CPU, batch_tokens=128), whole, rtol=0, atol=1e-5)
    other = [DNA.reverse_complement(window) for window in given]
    np.testing.assert_allclose(score(model, other, CPU, batch_tokens=128), whole, rtol=0, atol=1e-5)


def test_an_equivariant_model_is_given_each_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(complement=COMPLEMENT)
    rows: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    both = score(model, windows(100, 90), CPU, both_strands=True)
    assert rows == [4]
    np.testing.assert_array_equal(score(model, windows(100, 90), CPU, both_strands=False), both)


def test_strand_comes_from_the_model(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in.fa").write_text(f">r\n{DNA.decode(windows(900)[0])}\n")

    def classified(name: str, *strand: str, **fields: Any) -> Any:
        model = make(**fields).save_pretrained(tmp_path / name, dtype=torch.float32)
        result = run("classify", tmp_path / "in.fa", "-m", model, *strand)
        assert result.code == 0, result.err
        return result

    nothing = [classified("nothing", *each).out for each in ([], ["--strand", "both"], ["--strand", "forward"])]
    assert nothing[0] == nothing[1] != nothing[2]
    assert classified("both", strand="both").out == nothing[0]
    assert classified("forward", strand="forward").out == nothing[2]
    equivariant = classified("equivariant", complement=COMPLEMENT, strand="forward")
    told = classified("equivariant-forward", "--strand", "forward", complement=COMPLEMENT)
    assert told.out == equivariant.out
    assert "so --strand forward changes nothing" in told.err
    assert "changes nothing" not in equivariant.err
