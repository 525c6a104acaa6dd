import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_seq.data_prep.dna import GenomeData, GenomeDataConfig
from mamba_seq.data_prep.splits import Splits

Letters = dict[tuple[str, str], str]
DATA = os.environ.get("MAMBA_SEQ_DATA")


def ready(root: Path, **fields: Any) -> GenomeData:
    data = GenomeData(GenomeDataConfig(root=str(root), lengths=[63, 400], batch_tokens=4000, **fields))
    data.setup("fit")
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders(genome_folder: tuple[Path, Letters], workers: int) -> None:
    data = ready(genome_folder[0], workers=workers, validation_windows=5, test_windows=6)
    assert data.labels == ["alpha", "beta", "gamma"]
    for tokens, labels in itertools.islice(data.train_dataloader(), 6):
        assert tokens.shape in ((63, 63), (10, 400))
        assert labels.shape == tokens.shape[:1]
    for loaders, per_class in ((data.val_dataloader(), 5), (data.test_dataloader(), 6)):
        read = [list(loader) for loader in loaders]
        assert [part[0][0].shape[1] for part in read] == [63, 400]
        for part in read:
            assert torch.cat([labels for _, labels in part]).tolist() == [i for i in range(3) for _ in range(per_class)]


def test_the_loader_begins_at_the_step_asked_for(genome_folder: tuple[Path, Letters]) -> None:
    data = ready(genome_folder[0])
    whole = list(itertools.islice(data.train_dataloader(), 5))
    data.start_step = 3
    for (tokens, _), (expected, _) in zip(data.train_dataloader(), whole[3:], strict=False):
        assert torch.equal(tokens, expected)
        break


def test_a_saved_split_is_used_again(genome_folder: tuple[Path, Letters], tmp_path: Path) -> None:
    first = ready(genome_folder[0], seed=3, regions=2)
    path = tmp_path / "splits.tsv"
    path.write_text(first.splits.to_tsv())
    again = ready(genome_folder[0], seed=9, splits_file=str(path))
    assert again.splits == first.splits == Splits.from_tsv(path.read_text())


def test_a_split_by_record(genome_folder: tuple[Path, Letters]) -> None:
    data = ready(genome_folder[0], split="record", test_records=["alpha/x.fa", "b2", "c1"], validation_fraction=0.0)
    assert sorted(i.record for i in data.splits.of("test")) == ["a1", "b2", "c1"]
    assert data.splits.of("validation") == []


def test_setup_comes_first(tmp_path: Path) -> None:
    data = GenomeData(GenomeDataConfig(root=str(tmp_path)))
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        data.labels  # noqa: B018
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        data.splits  # noqa: B018


def test_every_field_of_the_config_is_explained() -> None:
    import ast
    import inspect

    (definition,) = ast.parse(inspect.getsource(GenomeDataConfig)).body
    assert isinstance(definition, ast.ClassDef)
    fields = [i for i, node in enumerate(definition.body) if isinstance(node, ast.AnnAssign)]
    assert len(fields) > 15
    for i in fields:
        following = definition.body[i + 1]
        assert isinstance(following, ast.Expr)
        assert isinstance(following.value, ast.Constant)


@pytest.mark.skipif(DATA is None, reason="MAMBA_SEQ_DATA names no folder of real genomes")
def test_real_genomes() -> None:
    assert DATA is not None
    data = GenomeData(GenomeDataConfig(root=str(Path(DATA) / "bacteria"), lengths=[1024, 8192], batch_tokens=65536))
    data.setup("fit")
    assert len(data.labels) == 11
    tokens, _ = next(iter(data.train_dataloader()))
    assert tokens.numel() == 65536
    composition = torch.bincount(tokens.flatten().long(), minlength=5) / tokens.numel()
    assert composition[:4].min() > 0.15
    windows = data.evaluation_windows("test", 100_000, 2)
    assert min(windows.disjoint.values()) >= 1
