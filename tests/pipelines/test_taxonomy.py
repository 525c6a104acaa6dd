"""Taxonomy ids: from the model's config, from a table, and what is wrong with either."""

from pathlib import Path
from typing import Any

import pytest

from mamba_seq import models_zoo
from mamba_seq.config import ModelConfig
from mamba_seq.data_prep.errors import DataError
from mamba_seq.errors import ModelError
from mamba_seq.pipelines.taxonomy import ROOT, Taxonomy

LABELS = ["alpha", "beta", "gamma"]
GOLDEN = Path(__file__).parent / "golden"
TABLE = """label\ttaxid\trank\tname\tlineage
beta\t22\tS1\tB. beta strain x\t2:D:Bacteria;20:S:B. beta
alpha\t2\tD\tBacteria\t
other\t5\t\t\t
gamma\t23\t\t\t
"""


def test_table_with_every_column(tmp_path: Path) -> None:
    path = tmp_path / "taxa.tsv"
    path.write_text(TABLE)
    taxonomy = Taxonomy.of_table(str(path), LABELS)
    assert taxonomy.of_label == [2, 22, 23]
    assert taxonomy.parents == {2: ROOT, 20: 2, 22: 20, 23: ROOT}
    assert (taxonomy.taxa[23].name, taxonomy.taxa[23].rank) == ("Gamma", "S")
    assert list(taxonomy.below(ROOT)) == [2, 23]


def test_a_label_may_be_above_another(run: Any, fake: Any, tmp_path: Path) -> None:
    path = tmp_path / "taxa.tsv"
    path.write_text(TABLE)
    fake.config.taxonomy = None
    result = run("classify", GOLDEN / "mixed.fa", "--kreport", "-", "-o", tmp_path / "t", "--taxonomy", path)
    assert result.code == 0, result.err
    lines = [line.split("\t") for line in result.out.splitlines()]
    bacteria = next(line for line in lines if line[4] == "2")
    assert int(bacteria[1]) > int(bacteria[2]) > 0
    assert [line[4] for line in lines if line[3] == "S1"] == ["22"]


@pytest.mark.parametrize("option", [["--kreport", "-", "-o", "/dev/null"], ["--format", "kraken"]])
def test_without_ids_the_error_says_how_to_give_them(run: Any, fake: Any, option: list[str]) -> None:
    fake.config.taxonomy = None
    result = run("classify", GOLDEN / "mixed.fa", *option)
    assert (result.code, result.out) == (1, "")
    assert "--taxonomy FILE" in result.err
    assert "'taxonomy' of its config.json" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alpha\t1\n", "a header line with the columns label and taxid"),
        ("", "a header line"),
        ("label\ttaxid\nalpha\t5\nbeta\t6\n", "no line for the model's label 'gamma'"),
        ("label\ttaxid\nalpha\t5\nalpha\t6\n", "line 3: label 'alpha' came before"),
        ("label\ttaxid\nalpha\tx\n", "line 2: taxonomy id 'x' came"),
        ("label\ttaxid\nalpha\t0\n", "line 2: taxonomy id '0' came"),
        ("label\ttaxid\nalpha\n", "line 2: taxonomy id '' came"),
        ("label\ttaxid\trank\nalpha\t5\tspecies\n", "rank code 'species' came, one of R, D"),
        ("label\ttaxid\tlineage\nalpha\t5\t2:Bacteria\n", "'2:Bacteria' came"),
        (
            "label\ttaxid\tlineage\nalpha\t5\t2:D:A\nbeta\t6\t2:D:B\ngamma\t7\t\n",
            "taxonomy id 2 is 'A' .* in one place and 'B'",
        ),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "taxa.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        Taxonomy.of_table(str(path), LABELS)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        Taxonomy.of_table(str(tmp_path / "none"), LABELS)


def test_a_lineage_of_a_config_that_cannot_be_read() -> None:
    with pytest.raises(ModelError, match=r"taxonomy of model 'm' cannot be read: .*2:D:Bacteria;562"):
        Taxonomy.of_model("m", ["a"], {"a": "Bacteria"})


def test_config_refuses_a_taxonomy_of_other_labels() -> None:
    folder = models_zoo.path("mamba-dna.bacteria11")
    config = ModelConfig.from_json_file(folder / "config.json")
    assert config.taxonomy is not None
    with pytest.raises(ValueError, match="taxonomy has other names than labels, 'x'"):
        ModelConfig(**{**vars(config), "taxonomy": {**config.taxonomy, "x": "5:S:X"}})


@pytest.mark.parametrize(
    "name", ["mamba-dna.bacteria11", "mamba-dna.cupriavidus7", "mamba-dna.vertebrates21", "mamba-dna.yeast3"]
)
def test_released_models_have_ids(name: str) -> None:
    config = ModelConfig.from_json_file(models_zoo.path(name) / "config.json")
    taxonomy = Taxonomy.of_model(name, config.labels, config.taxonomy)
    for label, taxid in zip(config.labels, taxonomy.of_label, strict=True):
        if name != "mamba-dna.vertebrates21":  # whose labels are names such as "cow"
            assert taxonomy.taxa[taxid].name.replace(" ", "_").lower() == label
        assert taxonomy.taxa[taxid].rank == "S"
