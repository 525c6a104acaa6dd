import numpy as np
import pytest

from mamba_seq.data_prep.alphabet import DNA, INVALID, decode, encode, get_alphabet, reverse_complement


def test_every_byte_has_its_code() -> None:
    expected = np.full(256, INVALID, dtype=np.uint8)
    for code, letters in enumerate(["Aa", "Cc", "Gg", "TtUu", "NnRrYyKkMmSsWwBbDdHhVv-."]):
        expected[[ord(letter) for letter in letters]] = code
    np.testing.assert_array_equal(encode(bytes(range(256))), expected)


def test_decode_turns_codes_back_and_marks_what_is_none() -> None:
    assert decode(encode("acgtnRU")) == "ACGTNNT"
    assert decode(np.array([0, INVALID], dtype=np.uint8)) == "A?"


def test_the_other_strand_of_the_other_strand_is_the_first() -> None:
    codes = np.random.default_rng(0).integers(0, 5, (3, 63), dtype=np.uint8)
    assert decode(reverse_complement(encode("AACGTN"))) == "NACGTT"
    np.testing.assert_array_equal(reverse_complement(reverse_complement(codes)), codes)
    np.testing.assert_array_equal(reverse_complement(codes)[1], reverse_complement(codes[1]))


def test_an_alphabet_is_found_by_the_name_in_a_config() -> None:
    assert get_alphabet("dna") is DNA
    assert (DNA.symbols, DNA.size, DNA.unknown_code) == ("ACGTN", 5, 4)
    with pytest.raises(ValueError, match="unknown alphabet 'klingon'; known alphabets: dna, protein, rna"):
        get_alphabet("klingon")
