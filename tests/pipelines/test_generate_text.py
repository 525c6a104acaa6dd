"""`mamba-seq generate --text` with folders of transformers: their greedy tokens, drawing, stops, what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_seq import LanguageModel, MambaConfig, ModelConfig, from_pretrained
from mamba_seq.errors import ModelError
from mamba_seq.heads import MODELS
from mamba_seq.pipelines.generate_text import _until_stop, generate_text, load_text_model
from mamba_seq.pipelines.text_tokens import TextStream, _Tokenizer
from mamba_seq.streaming import stream_tokens

transformers = pytest.importorskip("transformers", reason="compares with transformers; install mamba-seq[dev]")
tokenizers = pytest.importorskip("tokenizers", reason="needs mamba-seq[text]")

PROMPT = "Deep in the naïve sea — 深い"
TEXTS = ["Deep in the sea a snake slept.", "the naïve whale, the sea, the deep", "深い海 — the deep sea 🐳🐳"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random MambaForCausalLM with a byte-level tokenizer, as transformers writes it."""
    path = tmp_path_factory.mktemp("hf")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    torch.manual_seed(3)
    size = tokenizer.get_vocab_size()
    config = transformers.MambaConfig(
        hidden_size=16, num_hidden_layers=2, vocab_size=size, eos_token_id=None, tie_word_embeddings=False
    )
    model = transformers.MambaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (2.0 if "out_proj" in name else 0.3) * torch.randn_like(parameter)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(path)
    return path


def copy(folder: Path, target: Path, **changes: dict[str, Any] | None) -> Path:
    """Copy a folder with fields of JSON files changed; a file whose changes are None is left out."""
    target.mkdir()
    changed = {name.replace("_dot_", "."): fields for name, fields in changes.items()}
    for file in folder.iterdir():
        if file.name not in changed:
            (target / file.name).write_bytes(file.read_bytes())
    for name, fields in changed.items():
        if fields is not None:
            before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
            (target / name).write_text(json.dumps(before | fields))
    return target


def greedy(folder: Path, count: int) -> list[int]:
    """The tokens that transformers draws after the prompt."""
    model = transformers.MambaForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PROMPT).ids])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, ids.shape[1] :].tolist()


def test_greedy_text_is_that_of_transformers(folder: Path, run: Any, tmp_path: Path) -> None:
    want = greedy(folder, 120)
    assert len(set(want)) > 20, "a model that repeats itself tells little"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    text = tokenizer.decode(prompt + want).removeprefix(PROMPT)
    words = ["generate", "-m", folder, "--max-tokens", 120, "--temperature", 0]
    result = run(*words, "--text", PROMPT)
    assert (result.code, result.err) == (0, "")
    assert result.out == text + "\n"
    assert run(*words, "--text", PROMPT, "--echo").out == PROMPT + text + "\n"
    assert run(*words, "--text", PROMPT, "-o", tmp_path / "out.txt").out == ""
    assert (tmp_path / "out.txt").read_bytes().decode() == text + "\n"


def test_drawing(folder: Path, run: Any) -> None:
    words = ["generate", "-m", folder, "--max-tokens", 63, "--text", PROMPT]
    first = run(*words, "--seed", 1).out
    assert first == run(*words, "--seed", 1).out
    assert first != run(*words, "--seed", 2).out
    assert run(*words, "--seed", 1, "--top-k", 1).out == run(*words, "--temperature", 0).out
    assert run(*words, "--seed", 1, "--top-p", 0.3).out != first
    assert run(*words, "--seed", 1, "--temperature", 0.3).out != first


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_k": 9}, {"top_p": 0.8, "temperature": 1.3}], ids=str)
def test_streamed_tokens_are_those_of_generate(folder: Path, sampling: dict[str, Any]) -> None:
    model = from_pretrained(folder)
    assert isinstance(model, LanguageModel)
    prompts = torch.randint(0, 200, (3, 5), generator=torch.Generator().manual_seed(0))
    whole = model.generate(prompts, 40, generator=5, **sampling)
    streamed = list(stream_tokens(model, prompts, 40, generator=5, **sampling))
    assert torch.equal(torch.cat([prompts, *streamed], dim=1), whole)
    assert list(stream_tokens(model, prompts, 0)) == []
    with pytest.raises(ValueError, match="at least one token"):
        next(stream_tokens(model, prompts[:, :0], 3))


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_k": 9}], ids=str)
def test_streamed_tokens_on_a_gpu(folder: Path, sampling: dict[str, Any]) -> None:
    """A caller that stops early leaves the random numbers where those tokens leave them."""
    model = from_pretrained(folder, "cuda")
    assert isinstance(model, LanguageModel)
    prompts = torch.randint(0, 200, (3, 5), device="cuda")
    whole = model.generate(prompts, 61, generator=5, **sampling)
    streamed = list(stream_tokens(model, prompts, 61, generator=5, **sampling))
    assert torch.equal(torch.cat([prompts, *streamed], dim=1), whole)
    early = stream_tokens(model, prompts, 61, generator=5, **sampling)
    assert torch.equal(torch.cat([next(early), next(early)], dim=1), whole[:, 5:14])
    early.close()


def test_text_ends_where_the_model_says(folder: Path, tmp_path: Path) -> None:
    want = greedy(folder, 30)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    end = want[11]
    expected = tokenizer.decode(prompt + want[: want.index(end)]).removeprefix(PROMPT)
    for number, changes in enumerate(
        (
            {"generation_config_dot_json": {"eos_token_id": [end, 299]}},
            {"generation_config_dot_json": None, "config_dot_json": {"eos_token_id": end}},
        )
    ):
        model = load_text_model(str(copy(folder, tmp_path / str(number), **changes)), "cpu")
        assert "".join(generate_text(model, PROMPT, 30, temperature=0)) == expected


def test_text_to_stop_at(folder: Path, run: Any) -> None:
    words = ["generate", "-m", folder, "--max-tokens", 60, "--temperature", 0, "--text", PROMPT]
    whole = run(*words).out[:-1]
    late, early = whole[20:23], whole[9:11]
    assert run(*words, "--stop", late).out == whole[: whole.index(late)] + "\n"
    first = min(whole.index(late), whole.index(early))
    assert run(*words, "--stop", late, "--stop", early).out == whole[:first] + "\n"
    assert run(*words, "--stop", "not there").out == whole + "\n"


def test_a_text_to_stop_at_that_comes_in_pieces() -> None:
    assert list(_until_stop(iter(["ab", "c", "d", "e"]), ["cdx", "bcd"])) == ["a"]
    assert list(_until_stop(iter(["ab", "c", "x", "e"]), ["bcd"])) == ["a", "bcx", "e"]
    assert list(_until_stop(iter(["a", "b", "b"]), ["bbb"])) == ["a", "bb"]
    assert list(_until_stop(iter(["a", "", "b"]), [])) == ["a", "b"]


def test_characters_come_when_they_are_whole(folder: Path) -> None:
    tokens = _Tokenizer(folder / "tokenizer.json", 300)
    ids = tokens.encode("x🐋 ü—")
    stream = TextStream(tokens, tokens.encode("a"))
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) == "x🐋 ü—"
    assert "" in pieces
    assert not any("\ufffd" in piece for piece in pieces)
    cut = TextStream(tokens, tokens.encode("a"))
    assert "".join(cut.add(token) for token in tokens.encode("🐋")[:2]) == ""
    assert cut.end() == "\ufffd"


def test_a_model_of_letters(run: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        task="language-model", backbone=MambaConfig(d_model=8, n_layer=1), vocab_size=5, alphabet="dna"
    )
    model = LanguageModel(config)
    folder = model.save_pretrained(tmp_path / "m", dtype=torch.float32)
    words = ["generate", "-m", folder, "--max-tokens", 50, "--seed", 4, "--device", "cpu"]  # as the line below draws
    out = run(*words, "--text", "acgt").out
    new = model.eval().generate(torch.tensor([[0, 1, 2, 3]]), 50, generator=4)[0, 4:]
    assert out == "".join("ACGTN"[token] for token in new) + "\n"
    result = run(*words, "--text", "ACGT!")
    assert (result.code, result.out) == (1, "")
    assert "letter 5 of the prompt is '!', expected one of the model's alphabet dna (ACGTN)" in result.err


def test_standard_input(folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text(PROMPT + "\n", encoding="utf-8")
    words = ["generate", "-m", folder, "--max-tokens", 20, "--temperature", 0]
    with open(tmp_path / "prompt", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        read = run(*words, "--text", "-")
    assert read.out == run(*words, "--text", PROMPT).out
    (tmp_path / "prompt").write_bytes(b"ab\xff")
    with open(tmp_path / "prompt", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert "standard input is not text in UTF-8: byte 2 of it" in run(*words, "--text", "-").err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer_dot_json": None}, "has no tokenizer.json, and its config names no alphabet"),
        ({"tokenizer_dot_json": {"model": 3}}, "cannot be read as a tokenizer"),
        ({"generation_config_dot_json": {"eos_token_id": "x"}}, "eos_token_id is 'x', expected a number"),
        ({"config_dot_json": {"model_type": "gpt2"}}, "is not a Mamba language model: model_type is 'gpt2'"),
    ],
    ids=["no-tokenizer", "bad-tokenizer", "bad-end", "other-model"],
)
def test_folders_that_are_refused(folder: Path, run: Any, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    result = run("generate", "-m", copy(folder, tmp_path / "m", **changes), "--text", "x")
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert result.err.count("\n") == 1


def test_a_tokenizer_of_another_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"makes token \d+ of the prompt, and the model knows 60: .* another model"):
        _Tokenizer(folder / "tokenizer.json", 60).encode(PROMPT)


def test_models_that_write_no_text(run: Any, tmp_path: Path) -> None:
    backbone = MambaConfig(d_model=8, n_layer=1)
    for number, (task, fields, words) in enumerate(
        (
            ("sequence-classification", {"labels": ["a", "b"]}, "is a sequence-classification, expected"),
            ("language-model", {"labels": ["a", "b"]}, "is a language-model of several classes, expected"),
            (
                "language-model",
                {"codec": "mu-law-8bit-minmax", "sample_rate": 16000},
                "is a language-model of sound, expected a language-model of text",
            ),
        )
    ):
        config = ModelConfig(task=task, backbone=backbone, vocab_size=5, **fields)  # type: ignore[arg-type]
        folder = MODELS[task](config).save_pretrained(tmp_path / str(number))
        result = run("generate", "-m", folder, "--text", "x")
        assert (result.code, result.out) == (1, "")
        assert words in result.err


def test_without_the_extra(folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    result = run("generate", "-m", folder, "--text", "x")
    assert (result.code, result.out) == (1, "")
    assert "pip install 'mamba-seq[text]'" in result.err


def test_wrong_usage(folder: Path, run: Any) -> None:
    for words, message in (
        (["--text", "x", "--stop", ""], "--stop is empty"),
        (["--text", "x", "--top-p", "0"], "is not in the range"),
        ([], "Missing option '-o' / '--output': where clips go; text asks for --text instead"),
        (["-o", "x", "--echo"], "--echo goes with --text, which is missing"),
        (["--text", "x", "--seconds", "1"], "--seconds does not go with --text"),
    ):
        result = run("generate", "-m", folder, *words)
        assert result.code == 2
        assert message in result.err
    empty = run("generate", "-m", folder, "--text", "")
    assert (empty.code, empty.out) == (1, "")
    assert "the prompt is empty" in empty.err
