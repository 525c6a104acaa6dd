"""Folders of transformers and mamba_ssm: transformers' own model is the judge of ours, in and out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_seq import LanguageModel, MambaConfig, ModelConfig, ModelError, export_hf, export_mamba_ssm, from_pretrained
from mamba_seq.interop import folder_kind
from mamba_seq.interop.weights import read_weights
from mamba_seq.loading import open_model

transformers = pytest.importorskip("transformers", reason="compares with transformers; install mamba-seq[dev]")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 12}
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "odd": {"hidden_size": 21, "vocab_size": 17, "num_hidden_layers": 3, "expand": 3},
    "biases": {"use_bias": True, "use_conv_bias": False, "state_size": 8},
    "untied": {"tie_word_embeddings": False, "conv_kernel": 3, "time_step_rank": 5},
    "eps": {"layer_norm_epsilon": 1e-3, "residual_in_fp32": False, "expand": 1},
}
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def theirs() -> Make:
    """A transformers model in which every weight matters to the logits."""

    def make(**fields: Any) -> Any:
        torch.manual_seed(7)
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**{**SMALL, **fields}))
        model.generation_config.eos_token_id = None
        scramble(model)
        return model.eval()

    return make


@pytest.fixture
def ours() -> Make:
    def make(tie_embeddings: bool = True, **fields: Any) -> LanguageModel:
        torch.manual_seed(7)
        backbone = MambaConfig(**{"d_model": 16, "n_layer": 2, **fields})
        config = ModelConfig(
            task="language-model",
            backbone=backbone,
            vocab_size=12,
            tie_embeddings=tie_embeddings,
            alphabet="dna",
            context=77,
        )
        model = LanguageModel(config)
        scramble(model)
        return model.eval()

    return make


def scramble(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.3 * torch.randn_like(parameter)
            # a tied model whose blocks say little repeats its last token for ever
            if "embedding" in name:
                parameter *= 0.1
            elif "out_proj.weight" in name:
                parameter *= 3


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(tokens)
    return out if isinstance(out, Tensor) else out.logits


def some_tokens(vocab: int, length: int = 63) -> Tensor:
    return torch.randint(0, vocab, (2, length), generator=torch.Generator().manual_seed(2))


def assert_same_logits(one: Any, other: Any, vocab: int) -> None:
    tokens = some_tokens(vocab)
    torch.testing.assert_close(logits(one, tokens), logits(other, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_transformers_folder_gives_its_logits_and_its_greedy_tokens(
    theirs: Make, tmp_path: Path, fields: dict[str, Any]
) -> None:
    model = theirs(**fields)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    vocab = model.config.vocab_size
    assert isinstance(loaded, LanguageModel)
    assert not loaded.training
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert_same_logits(loaded, model, vocab)
    prompt = some_tokens(vocab, 5)[:1]
    mask = torch.ones_like(prompt)
    greedy = model.generate(prompt, attention_mask=mask, max_new_tokens=200, do_sample=False, pad_token_id=0)
    assert greedy.shape == (1, 205)
    assert len(set(greedy[0, 5:].tolist())) > 3, "a model that repeats one token tells little"
    assert torch.equal(loaded.generate(prompt, 200, temperature=0), greedy)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"d_model": 21, "expand": 3, "d_state": 8, "d_conv": 3, "dt_rank": 5},
        {"bias": True, "conv_bias": False, "tie_embeddings": False},
        {"norm_eps": 0.1, "residual_in_fp32": False},
    ],
)
def test_our_model_loads_in_transformers_without_a_word(
    ours: Make, tmp_path: Path, fields: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    model = ours(**fields)
    export_hf(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded, report = transformers.MambaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert capfd.readouterr().err == ""
    assert not any(report.values()), report
    assert loaded.config.eos_token_id is None
    assert_same_logits(loaded.eval(), model, 12)
    again = from_pretrained(tmp_path)
    tokens = some_tokens(12)
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    rank = model.config.backbone.rank
    model.config.backbone.dt_rank = rank
    assert again.config == model.config


def test_bfloat16_weights_keep_the_long_memory_in_float32(ours: Make, tmp_path: Path) -> None:
    model = ours()
    export_hf(model, tmp_path, torch.bfloat16)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        exact = name.endswith((".A_log", ".D", ".dt_proj.bias"))
        assert tensor.dtype == (torch.float32 if exact else torch.bfloat16), name
    loaded = transformers.MambaForCausalLM.from_pretrained(tmp_path).eval()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    again, dtype = open_model(tmp_path, "m")
    assert dtype == torch.bfloat16
    assert torch.equal(again.backbone.layers[0].mixer.A_log, model.backbone.layers[0].mixer.A_log)
    assert_same_logits(again.eval(), loaded, 12)


def test_weights_of_16_bits_are_loaded_in_float32(theirs: Make, tmp_path: Path) -> None:
    model = theirs().bfloat16()
    model.save_pretrained(tmp_path)
    loaded, dtype = open_model(tmp_path, "m")
    assert dtype == torch.bfloat16
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert_same_logits(loaded.eval(), model.float(), 12)
    theirs().half().save_pretrained(tmp_path)
    assert open_model(tmp_path, "m")[1] == torch.float32


def test_shards_are_put_together(theirs: Make, tmp_path: Path) -> None:
    model = theirs(tie_word_embeddings=False)
    folder = tmp_path / "m"
    model.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_same_logits(from_pretrained(folder), model, 12)
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()
    with pytest.raises(ModelError, match=r"names 'model-00001-of-\d+\.safetensors', which is not there"):
        from_pretrained(folder)
    index = folder / "model.safetensors.index.json"
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    index.write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(ModelError, match=r"names '\.\./a\.safetensors'"):
        from_pretrained(folder)
    index.write_text("[]")
    with pytest.raises(ModelError, match="cannot be read as an index"):
        from_pretrained(folder)


def test_a_stack_saved_without_its_head_is_a_tied_model(theirs: Make, tmp_path: Path) -> None:
    model = theirs()
    model.backbone.save_pretrained(tmp_path)
    assert_same_logits(from_pretrained(tmp_path), model, 12)


def test_old_folders_with_extra_fields_and_a_float_expand_load(theirs: Make, tmp_path: Path) -> None:
    model = theirs()
    model.save_pretrained(tmp_path)
    extra = {"d_model": 16, "n_layer": 2, "ssm_cfg": {}, "rms_norm": True, "expand": 2.0, "time_step_rank": "auto"}
    change_config(tmp_path, **extra, drop=["intermediate_size", "tie_word_embeddings"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert folder_kind(tmp_path) == "transformers"
    assert_same_logits(from_pretrained(tmp_path), model, 12)


def change_config(folder: Path, drop: list[str] | None = None, **fields: Any) -> None:
    path = folder / "config.json"
    changed = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in changed.items() if name not in (drop or [])}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "falcon_mamba"}, "Falcon Mamba, which normalises delta, B and C"),
        ({"mixer_rms_eps": 1e-6}, "Falcon Mamba"),
        ({"model_type": "mamba2"}, r"model_type is 'mamba2'.*expected 'mamba'"),
        ({"architectures": ["MambaForSomethingElse"]}, "MambaForSomethingElse"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"intermediate_size": 40}, "40 channels for a width of 16, expected a multiple"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_size": "16"}, "hidden_size is '16', expected an integer"),
        ({"use_bias": 1}, "use_bias is 1, expected true or false"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon is None, expected a number"),
        ({"conv_kernel": 1}, "d_conv is 1, expected at least 2"),
        ({"state_size": 8}, r"layers\.0\.mixer\.A_log is \(32, 16\), expected \(32, 8\)"),
        ({"use_bias": True}, r"backbone\.layers\.0\.mixer\.in_proj\.bias is missing"),
        ({"use_conv_bias": False}, r"backbone\.layers\.0\.mixer\.conv1d\.bias is not part of the model"),
        ({"conv_kernel": 3}, r"conv1d\.weight is \(32, 4\), expected \(32, 3\)"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight is missing"),
        ({"num_hidden_layers": 1}, r"backbone\.layers\.1\..* is not part of the model; .* and \d+ more"),
    ],
)
def test_what_our_block_does_not_do_is_refused(
    theirs: Make, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    theirs().save_pretrained(tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(ModelError, match=message):
        from_pretrained(tmp_path)


def test_a_missing_size_is_named(theirs: Make, tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    change_config(tmp_path, drop=["vocab_size"])
    with pytest.raises(ModelError, match="vocab_size is missing, expected an integer"):
        from_pretrained(tmp_path)


def test_a_tied_model_with_a_head_of_its_own_is_refused(theirs: Make, tmp_path: Path) -> None:
    theirs(tie_word_embeddings=False).save_pretrained(tmp_path)
    change_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ModelError, match="differs from the embedding"):
        from_pretrained(tmp_path)


MAMBA_SSM: dict[str, Any] = {
    "d_model": 16,
    "n_layer": 2,
    "vocab_size": 12,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 1,
}


class TestMambaSSM:
    def write(self, folder: Path, tensors: dict[str, Tensor], **fields: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**MAMBA_SSM, **fields}))
        torch.save(tensors, folder / "pytorch_model.bin")

    def their_weights(self, model: Any) -> dict[str, Tensor]:
        """A transformers model's weights under mamba_ssm's names: but for the embedding, they are the same."""
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
        return tensors

    @pytest.mark.parametrize(
        ("hf", "ssm"),
        [
            ({}, {}),
            (
                {"state_size": 8, "conv_kernel": 3, "time_step_rank": 3, "use_bias": True, "use_conv_bias": False},
                {"ssm_cfg": {"d_state": 8, "d_conv": 3, "dt_rank": 3, "bias": True, "conv_bias": False}},
            ),
            ({"tie_word_embeddings": False}, {"tie_embeddings": False}),
            ({"vocab_size": 16}, {"vocab_size": 13, "pad_vocab_size_multiple": 8}),
            ({"expand": 1}, {"ssm_cfg": {"layer": "Mamba1", "expand": 1}, "attn_layer_idx": [], "d_intermediate": 0}),
        ],
    )
    def test_a_folder_gives_the_logits_of_its_weights(
        self, theirs: Make, tmp_path: Path, hf: dict[str, Any], ssm: dict[str, Any]
    ) -> None:
        model = theirs(**hf)
        self.write(tmp_path, self.their_weights(model), **ssm)
        assert folder_kind(tmp_path) == "mamba-ssm"
        with pytest.raises(ModelError, match=r"is a pickle.*mamba-seq convert some/name DIR"):
            open_model(tmp_path, "some/name")
        loaded, dtype = open_model(tmp_path, "m", unpickle=True)
        assert dtype == torch.float32
        assert_same_logits(loaded.eval(), model, model.config.vocab_size)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"ssm_cfg": {"layer": "Mamba2"}}, r"ssm_cfg\.layer is 'Mamba2'"),
            ({"attn_layer_idx": [1]}, "attention or MLP layers"),
            ({"d_intermediate": 32}, "attention or MLP layers"),
            ({"bidirectional": True}, "does not know, and will not guess about: bidirectional"),
            ({"ssm_cfg": {"headdim": 64}}, r"does not know, .*: ssm_cfg\.headdim"),
            ({"ssm_cfg": [1]}, r"ssm_cfg is \[1\], expected an object"),
            ({"ssm_cfg": {"expand": 1.5}}, "24 channels for a width of 16, expected a multiple"),
            ({"vocab_size": 13, "pad_vocab_size_multiple": 8}, r"embedding\.weight is \(12, 16\), expected \(16, 16\)"),
            ({"rms_norm": False}, r"backbone\.layers\.0\.norm\.bias is missing"),
        ],
    )
    def test_what_our_block_does_not_do_is_refused(
        self, theirs: Make, tmp_path: Path, fields: dict[str, Any], message: str
    ) -> None:
        self.write(tmp_path, self.their_weights(theirs()), **fields)
        with pytest.raises(ModelError, match=message):
            open_model(tmp_path, "m", unpickle=True)

    @pytest.mark.parametrize("tied", [True, False])
    def test_round_trip_by_names(self, ours: Make, tmp_path: Path, tied: bool) -> None:
        model = ours(norm="layer", bias=True, d_conv=3, tie_embeddings=tied)
        export_mamba_ssm(model, tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "pytorch_model.bin"]
        tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
        mixer = (
            "A_log D in_proj.weight in_proj.bias conv1d.weight conv1d.bias x_proj.weight dt_proj.weight dt_proj.bias"
        )
        block = [f"mixer.{name}" for name in f"{mixer} out_proj.weight out_proj.bias".split()]
        names = {f"backbone.layers.{i}.{name}" for i in range(2) for name in [*block, "norm.weight", "norm.bias"]}
        names |= {"backbone.embedding.weight", "backbone.norm_f.weight", "backbone.norm_f.bias", "lm_head.weight"}
        assert set(tensors) == names
        assert tensors["backbone.layers.1.mixer.conv1d.weight"].shape == (32, 1, 3)
        head, embedding = tensors["lm_head.weight"], tensors["backbone.embedding.weight"]
        assert (head.data_ptr() == embedding.data_ptr()) == tied
        again, _ = open_model(tmp_path, "m", unpickle=True)
        assert torch.equal(logits(again.eval(), some_tokens(12)), logits(model, some_tokens(12)))

    def test_the_config_is_one_that_both_of_its_versions_read(self, ours: Make, tmp_path: Path) -> None:
        export_mamba_ssm(ours(), tmp_path)
        fields = json.loads((tmp_path / "config.json").read_text())
        assert set(fields) == set(MAMBA_SSM)
        assert fields["ssm_cfg"]["dt_rank"] == 1
        assert set(fields["ssm_cfg"]) <= {
            "d_state",
            "d_conv",
            "expand",
            "dt_rank",
            "dt_min",
            "dt_max",
            "conv_bias",
            "bias",
        }

    def test_a_norm_eps_that_its_config_cannot_say_is_refused(self, ours: Make, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"norm_eps is 0\.001"):
            export_mamba_ssm(ours(norm_eps=0.001), tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestPickles:
    def test_a_hub_model_of_pickles_says_what_to_do(
        self, theirs: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        theirs().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        asked: dict[str, Any] = {}

        def snapshot(name: str, allow_patterns: list[str], **how: object) -> str:
            asked[name] = allow_patterns
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        with pytest.raises(ModelError, match=r"has no model\.safetensors.*mamba-seq convert owner/name DIR"):
            from_pretrained("owner/name")
        assert "model.safetensors.index.json" in asked["owner/name"]
        assert not any("bin" in pattern for pattern in asked["owner/name"])

    def test_code_in_a_pickle_is_not_run(self, theirs: Make, tmp_path: Path) -> None:
        theirs().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        harmed = tmp_path / "harmed"
        torch.save({"backbone.embeddings.weight": Harm(harmed)}, tmp_path / "pytorch_model.bin")
        for unpickle in (False, True):
            with pytest.raises(ModelError, match="pickle" if not unpickle else "cannot be read as a state dict"):
                read_weights(tmp_path, "m", unpickle)
        assert not harmed.exists()

    @pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 cut"])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read as a state dict"):
            read_weights(tmp_path, "m", unpickle=True)

    @pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}])
    def test_a_pickle_of_something_else_is_refused(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelError, match="is not a state dict"):
            read_weights(tmp_path, "m", unpickle=True)


class Harm:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_layer_norm_has_no_transformers_form(ours: Make, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="norm is 'layer', expected 'rms'"):
        export_hf(ours(norm="layer"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ssm", ["complex", "time-invariant", "time-invariant-real"])
@pytest.mark.parametrize("export", [export_hf, export_mamba_ssm])
def test_another_recurrence_cannot_be_exported(ours: Make, tmp_path: Path, export: Make, ssm: str) -> None:
    with pytest.raises(ModelError, match=f"ssm is '{ssm}', expected 'selective': .* has no other recurrence"):
        export(ours(ssm=ssm), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", [export_hf, export_mamba_ssm])
def test_a_classifier_cannot_be_exported(make_classifier: Make, tmp_path: Path, export: Make) -> None:
    with pytest.raises(ModelError, match="sequence-classification, expected a language-model"):
        export(make_classifier(), tmp_path / "out")


def test_an_untied_model_keeps_its_output_matrix_when_saved(ours: Make, tmp_path: Path) -> None:
    model = ours(tie_embeddings=False)
    again = from_pretrained(model.save_pretrained(tmp_path, dtype=torch.float32))
    assert torch.equal(logits(again, some_tokens(12)), logits(model, some_tokens(12)))
    assert not torch.equal(again.output.weight, again.embedding.weight)
