import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mamba_seq.data_prep.alphabet import decode, encode, reverse_complement
from mamba_seq.data_prep.sequences import read_sequences
from mamba_seq.data_prep.simulate import MarkovChain, count_kmers, kmers, shares_kmer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("k", [1, 2, 5])
def test_kmers_are_counted_as_in_the_text(k: int) -> None:
    letters = "".join(np.random.default_rng(0).choice(list("ACGTN"), 1000, p=[0.3, 0.2, 0.2, 0.25, 0.05]))
    expected = Counter(letters[i : i + k] for i in range(len(letters) - k + 1))
    counts = count_kmers(encode(letters), k)
    found = {decode(np.array(np.unravel_index(i, (4,) * k))): int(n) for i, n in enumerate(counts) if n}
    assert found == {word: n for word, n in expected.items() if "N" not in word}


def test_a_sequence_shorter_than_k_has_no_kmers() -> None:
    assert count_kmers(encode("AC"), 3).sum() == 0
    assert len(kmers(encode("ACGTACGTA" * 3), 32)) == 0
    with pytest.raises(ValueError, match="k is 33"):
        kmers(encode("ACGT"), 33)


def test_a_chain_draws_with_the_frequencies_it_was_fitted_to() -> None:
    rng = np.random.default_rng(0)
    source = np.concatenate([[0, 0, 1], rng.choice(4, 50_000, p=[0.4, 0.1, 0.2, 0.3])]).astype(np.uint8)
    source[1::2] = (source[0::2][: len(source[1::2])] + 1) % 4  # a base at an odd place follows from the one before
    chain = MarkovChain.fit([source], order=2, both_strands=False)
    drawn = chain.sample(50_000, rng)
    assert drawn.max() < 4
    a, b = (count_kmers(codes, 3) / len(codes) for codes in (source, drawn))
    assert np.abs(a - b).max() < 0.01
    assert a.max() > 4 / 64  # the source is far from uniform


def test_a_chain_of_both_strands_is_symmetric() -> None:
    source = encode("AACAGATTAACAACCG" * 100)
    one = MarkovChain.fit([source], order=3)
    other = MarkovChain.fit([reverse_complement(source)], order=3)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


@pytest.mark.parametrize("length", [1, 3, 8, 9, 1000])
def test_a_sample_has_its_length_and_follows_the_seed(length: int) -> None:
    chain = MarkovChain.fit([encode("ACGGTTACGATTACGGA" * 50)], order=8)
    one, two = (chain.sample(length, np.random.default_rng(4)) for _ in range(2))
    assert len(one) == length
    np.testing.assert_array_equal(one, two)


def test_order_0_is_composition() -> None:
    chain = MarkovChain.fit([encode("AAAC" * 1000)], order=0, both_strands=False)
    np.testing.assert_allclose(chain.probabilities, [[0.75, 0.25, 0, 0]], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"order": 13}, "order is 13"), ({"order": -1}, "order"), ({"pseudo_count": 0}, "pseudo_count"), ({}, "9 bases")],
)
def test_a_chain_needs_data_and_possible_numbers(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MarkovChain.fit([encode("ACGTNACGT")], **arguments)


def test_a_shared_stretch_is_found_on_either_strand() -> None:
    rng = np.random.default_rng(0)
    genome = rng.integers(0, 4, 5000, dtype=np.uint8)
    other = rng.integers(0, 4, 500, dtype=np.uint8)
    assert not shares_kmer(other, [genome], 20)
    for planted in (genome[100:120], reverse_complement(genome[100:120])):
        other[40:60] = planted
        assert shares_kmer(other, [genome[:50], genome], 20)
        assert not shares_kmer(other, [genome], 32)
    assert not shares_kmer(other[:5], [genome], 20)


def test_the_example_file_is_what_its_readme_says() -> None:
    records = read_sequences(EXAMPLES / "bacteria_simulated.fa.gz")
    found = [(r.name, r.description, r.codes(), r.bases, r.invalid) for r in records]
    species = Counter(name.removeprefix("sim_").rsplit("_", 1)[0] for name, *_ in found)
    assert len(species) == 11
    assert set(species.values()) == {2}
    for name, description, codes, bases, invalid in found:
        about = 3000 if name.endswith("_1") else 20_000
        assert abs(len(codes) - about) <= 0.05 * about + 1
        assert bases == len(codes)
        assert invalid is None
        assert description.startswith("simulated from an order-8 Markov chain of ")


def test_the_script_makes_the_same_file_twice(
    tmp_path: Path,
    write_fasta: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(0)
    for label in ("homo_sapiens", "mus_musculus"):
        letters = decode(rng.integers(0, 4, 150_000, dtype=np.uint8))
        write_fasta(tmp_path / "data" / label / "x.fa.gz", {"chr": letters}, "gzip")
    script = load_script()
    for out in ("one", "two"):
        monkeypatch.setattr("sys.argv", ["make_simulated.py", str(tmp_path / "data"), str(tmp_path / out)])
        script.main()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    records = [(record.name, record.description) for record in read_sequences(tmp_path / "one")]
    assert len(records) == 4
    assert ("sim_homo_sapiens_1", "simulated from an order-8 Markov chain of Homo sapiens (chr)") in records
    assert "4 sequences" in capsys.readouterr().out


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_simulated", EXAMPLES / "make_simulated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
