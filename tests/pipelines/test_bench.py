"""`mamba-seq bench`: what it prints and writes, what it refuses, and that peers compute what ours does."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba_seq.kernels._dispatch import implementation
from mamba_seq.pipelines.bench import checks, ops, peers, plan, table, timing
from mamba_seq.pipelines.errors import CheckError

HERE = Path(__file__).parent
CPU = torch.device("cpu")
LOOPS = ("--peer", "torch loop", "--peer", "torch conv1d")
SMALL = ("bench", "--device", "cpu", "--quick", "--shape", "1x63x32", *LOOPS)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "QUICK_SECONDS", 1e-3)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr("gc.collect", lambda: 0)  # a suite has more to look through than a command
    monkeypatch.setattr(checks, "CPU_SIZES", ((2, 65, 20),))


def test_rows_go_to_standard_output_and_to_a_file(run: Any, tmp_path: Path) -> None:
    result = run(*SMALL, "-o", tmp_path / "times.csv")
    assert result.code == 0, result.err
    rows = [line.split("\t") for line in result.out.splitlines()]
    named = "".join("\t".join(row[:8]) + "\n" for row in rows)
    assert named == (HERE / "golden" / "bench.tsv").read_text()
    assert rows[0] == list(table.COLUMNS)
    with (tmp_path / "times.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == [*table.COLUMNS, "cpu", "threads", "torch", "numba", "date"]
    assert [[value or "NA" for value in list(row.values())[: len(table.COLUMNS)]] for row in written] == rows[1:]
    for row in written:
        if row["peer"]:
            assert float(row["ratio"]) == pytest.approx(
                float(row["peer_ms"]) / float(row["ours_ms"]), rel=0.05, abs=0.006
            )
        assert float(row["ours_min"]) <= float(row["ours_ms"]) <= float(row["ours_max"])
        assert float(row["exp_floor_ms"]) > 0
        assert row["threads"] == str(torch.get_num_threads())
    assert "outputs and gradients checked in float64" in result.err


def test_one_type_one_direction_one_operator(run: Any) -> None:
    result = run(*SMALL, "--op", "causal_conv1d", "--direction", "backward", "--dtype", "bf16", "--shape", "2x7x33")
    assert result.code == 0, result.err
    assert [row[:8] for row in result.rows] == [
        ["causal_conv1d", "backward", *size, "4", "bf16", "torch conv1d"]
        for size in (("1", "63", "32"), ("2", "7", "33"))
    ]


def test_odd_channels_are_no_block(run: Any, tmp_path: Path) -> None:
    target = tmp_path / "times.csv"
    result = run(*SMALL[:4], "--shape", "1x5x7", "--op", "block", "--peer", "mamba_ssm", "-o", target)
    assert (result.code, result.out) == (0, "")
    assert target.read_text().startswith("op,direction,")
    assert target.read_text().count("\n") == 1
    assert "left out: a block of 7 channels" in result.err


@pytest.mark.parametrize(("part", "name"), [(1, "ddelta"), (0, "du")])
def test_nothing_is_timed_when_a_gradient_is_wrong(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, name: str
) -> None:
    module = implementation("selective_scan", "cpu")
    backward = module.backward

    def wrong(*arguments: Any, **options: Any) -> Any:
        gradients = list(backward(*arguments, **options))
        gradients[part] = gradients[part] * (1 + 1e-4)
        return tuple(gradients)

    monkeypatch.setattr(module, "backward", wrong)
    result = run(*SMALL, "-o", tmp_path / "times.csv")
    assert (result.code, result.out) == (1, "")
    assert f"selective_scan: {name} is off by" in result.err
    assert "nothing is timed" in result.err
    assert not list(tmp_path.iterdir())


def fake(name: str, call: Any, **more: Any) -> peers.Peer:
    return peers.Peer(name, "selective_scan", lambda case, inputs, direction: call, **more)


def with_peers(monkeypatch: pytest.MonkeyPatch, *those: peers.Peer) -> None:
    loop = next(peer for peer in peers.PEERS if peer.name == "torch loop")
    monkeypatch.setattr(peers, "PEERS", (*those, loop))
    monkeypatch.setattr("mamba_seq.pipelines.bench.PEERS", (*those, loop))


FEW = (*SMALL[:6], "--op", "selective_scan")


def test_nothing_is_timed_when_a_peer_differs(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_peers(monkeypatch, fake("other", lambda: torch.ones(2, 96, 64)))
    result = run(*FEW)
    assert (result.code, result.out) == (1, "")
    assert "ours and other differ by" in result.err


def test_a_peer_that_fails_leaves_the_others(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much\nmore words")

    with_peers(monkeypatch, fake("greedy", fail, same_function=False), fake("broken", lambda: 1 / 0))
    monkeypatch.setattr(checks, "check_peer", lambda *_: None)
    result = run(*FEW, "--peer", "greedy", "--peer", "torch loop", "--shape", "1x64x64")
    assert result.code == 0, result.err
    assert {row[7] for row in result.rows} == {"torch loop"}
    assert "left out: greedy at 1 x 64 x 64 failed: CUDA out of memory. Tried to allocate much\n" in result.err


def test_missing_peers_are_named_with_what_to_install(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "import_error", lambda module: f"{module} is not installed")
    result = run(*FEW)
    assert result.code == 0, result.err
    assert "left out: mambapy (selective_scan): mambapy is not installed; pip install mambapy" in result.err
    assert "left out: transformers (selective_scan): transformers is not installed; pip install" in result.err
    assert "left out: mamba_ssm (selective_scan): it runs on CUDA devices only" in result.err
    assert {row[7] for row in result.rows} == {"PyTorch scan", "torch loop"}  # 32 channels are no head


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--shape", "1x0x3"], 2, "batch x length x channels was expected, such as 1x131072x512"),
        (["--shape", "1x3"], 2, "batch x length x channels was expected"),
        (["--shape", "1x3x4", "--lengths"], 2, "give one of them"),
        (["--peer", "nobody"], 2, "no peer 'nobody'; there are mamba_ssm,"),
        (["-o", "no/such/folder/x.csv"], 1, "there is no folder"),
    ],
)
def test_wrong_usage(run: Any, arguments: list[str], code: int, words: str) -> None:
    result = run("bench", "--device", "cpu", *arguments)
    assert (result.code, result.out) == (code, "")
    assert words in " ".join(result.err.split())


def test_a_package_that_does_not_fit_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "built_for_another.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "does not import (undefined symbol: _ZN3c10)" in str(peers.import_error("built_for_another"))
    assert peers.import_error("no_such_package") == "no_such_package is not installed"
    assert peers.import_error("json") is None


SAME = [peer for peer in peers.PEERS if not peer.cuda_only]


@pytest.mark.parametrize("peer", SAME, ids=lambda peer: f"{peer.name}-{peer.op}")
def test_peers_compute_the_same_and_have_gradients(peer: peers.Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := peer.missing(CPU):
        pytest.skip(reason)
    asked = plan.Plan(ops=(peer.op,), shapes=(), dtype=torch.float32)
    case = ops.Case(peer.op, 2, 33, 64, 16, torch.float32, CPU)
    inputs = ops.OPS[peer.op].draw(case)
    checks.check_peer(peer, asked, CPU)
    if "backward" not in peer.directions or not peer.same_function:
        return
    wanted = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    torch.manual_seed(1)
    dy = torch.randn(2, 33, 32 if peer.op == "block" else 64)
    monkeypatch.setattr(torch, "randn_like", lambda y: dy)
    ours, theirs = (make(case, inputs, "backward")() for make in (ops.OPS[peer.op].ours, peer.make))
    for name, mine, other in zip(inputs, ours[: len(wanted)], theirs[: len(wanted)], strict=False):
        assert checks.relative_error(other, mine) < 1e-3, name


def test_what_a_peer_cannot_do() -> None:
    by_name = {peer.name: peer for peer in peers.PEERS if peer.op == "selective_scan"}
    long = ops.Case("selective_scan", 1, 2**22, 512, 16, torch.float32, CPU)
    assert "more than 16,384 steps" in str(by_name["torch loop"].too_much(long, "forward"))
    assert "its states would take 1,099 GB" in str(by_name["mambapy"].too_much(long, "forward")).replace(
        "1100", "1,099"
    )
    assert "more than 1,048,576 steps" in str(by_name["FlashAttention"].too_much(long, "forward"))
    assert "not heads of 64" in str(by_name["FlashAttention"].too_much(long._replace(L=8, D=100), "forward"))
    assert "square of the length" in str(by_name["transformers"].too_much(long._replace(L=4096), "backward"))
    assert by_name["torch loop"].too_much(long._replace(L=512), "backward") is None


def test_comparison_knows_nan() -> None:
    y = torch.ones(3)
    checks.compare("same", y, y)
    with pytest.raises(CheckError, match="ours and other differ by nan"):
        checks.compare("other", y, y * float("nan"))


def test_rows_are_added_to_a_file_of_the_same_columns(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_bytes(b'op,peer\r\nscan,"a, b"\r\n')
    table.append_csv(path, [{"op": "scan", "peer": "c"}])
    table.append_csv(path, [{"op": "conv", "peer": ""}])
    assert path.read_text() == 'op,peer\nscan,"a, b"\nscan,c\nconv,\n'
    with pytest.raises(ValueError, match="other columns"):
        table.append_csv(path, [{"op": "conv"}])


def test_saved_results_have_the_columns_of_a_gpu() -> None:
    path = HERE.parents[1] / "benchmarks" / "results" / "scan_h200.csv"
    assert path.read_text().splitlines()[0].split(",") == [*table.COLUMNS, *table.ON_GPU]


def test_a_terminal_sees_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    case = ops.Case("selective_scan", 1, 131072, 512, 16, torch.bfloat16, CPU)
    from mamba_seq.pipelines.bench.floors import Floors

    floors = Floors("x", 4e12, 4e12)
    mine, theirs = timing.Times(0.79, 0.8, 0.82), timing.Times(1.4, 1.6, 1.7)
    with table.shown(table.COLUMNS) as show:
        for peer in ("mamba_ssm", "FlashAttention"):
            show(table.make_row(case, "forward", peer, mine, theirs, floors, 152_000_000))
    out = capsys.readouterr().out
    first, second = (" ".join(line.split()) for line in out.splitlines()[1:3])
    assert first == "selective_scan forward 1, 131,072, 512, 16 bf16 0.8 mamba_ssm 1.6 2.00x 0.136 / 0.268 152"
    assert second == "FlashAttention 1.6 2.00x"


@pytest.mark.gpu
def test_on_a_gpu(run: Any, tmp_path: Path) -> None:
    target = tmp_path / "times.csv"
    result = run("bench", "--device", "cuda", "--shape", "2x257x128", "--peer", "FlashAttention", *LOOPS, "-o", target)
    assert result.code == 0, result.err
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["peer"] for row in rows if row["op"] == "selective_scan"} == {"FlashAttention", "torch loop"}
    assert {row["dtype"] for row in rows} == {"bf16"}
    assert all(int(row["peak_bytes"]) > 0 and float(row["byte_floor_ms"] or 1) > 0 for row in rows)
    assert all(row["gpu"] == torch.cuda.get_device_name() and row["driver"] != "NA" for row in rows)
