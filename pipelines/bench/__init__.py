"""Times of our operators beside every peer that is installed, after a check of what is timed.

`ops.py` says what is timed and on which inputs, `peers.py` against whom, `checks.py` what must hold before, `floors.py`
how fast the machine could be at best, `timing.py` how a time is taken, `table.py` how a row is written. `plan.py` has
the shapes. The scripts in benchmarks/ that save times of the scan call the same functions as `mamba-seq bench`.
"""

import gc
import logging
from collections.abc import Callable, Iterator

import torch

from mamba_seq.pipelines.bench.checks import check_ours, check_peer, compare
from mamba_seq.pipelines.bench.floors import Floors, measure_floors
from mamba_seq.pipelines.bench.ops import OPS, Call, Case
from mamba_seq.pipelines.bench.peers import PEERS, Peer
from mamba_seq.pipelines.bench.plan import Plan
from mamba_seq.pipelines.bench.table import Row, make_row
from mamba_seq.pipelines.bench.timing import peak_bytes, time_in_turns
from mamba_seq.pipelines.errors import CheckError

log = logging.getLogger("mamba_seq.pipelines")


def check(plan: Plan, device: torch.device) -> list[Peer]:
    """Hold ours to float64 and the peers to ours, and return the peers that can be timed.

    Raises:
        CheckError: when something differs; nothing may be timed then.
    """
    worst = max(check_ours(op, plan, device) for op in plan.ops)
    log.info("outputs and gradients checked in float64, off by %.1e of the largest element at most", worst)
    found = []
    for peer in PEERS:
        if peer.op not in plan.ops or not plan.wants(peer):
            continue
        reason = peer.missing(device)
        if reason is None:
            found.append(peer)
        else:
            log.info("left out: %s (%s): %s", peer.name, peer.op, reason)
    return [peer for peer in found if _passes(peer, plan, device)]


def measure(
    plan: Plan, device: torch.device, peers: list[Peer], tell: Callable[[str], None] = lambda text: None
) -> Iterator[Row]:
    """Time what the plan asks for, on one device.

    Args:
        plan: operators, shapes, directions, type.
        device: where.
        peers: those that `check` returned.
        tell: is told what comes next.

    Yields:
        A row for each peer of each case, or one without a peer where there is none.

    Raises:
        CheckError: when ours and a peer differ on inputs that are to be timed.
    """
    tell("the floors of this machine")
    floors = measure_floors(device, plan.quick)
    log.info("%s", floors)
    for op in plan.ops:
        for shape in plan.shapes:
            case = Case(op, *shape, plan.N, plan.dtype, device)
            if op == "block" and case.D % 2:
                log.info("left out: a block of %d channels, as a block has twice its d_model", case.D)
                continue
            for direction in plan.directions:
                tell(f"{op} {direction} {case.B} x {case.L:,} x {case.D}")
                yield from _time_case(case, direction, [p for p in peers if p.op == op], floors, plan.quick)
                _clear()


def _time_case(case: Case, direction: str, peers: list[Peer], floors: Floors, quick: bool) -> Iterator[Row]:
    op = OPS[case.op]
    inputs = op.draw(case)
    ours = op.ours(case, inputs, direction)
    ours()
    peak = peak_bytes(ours, case.device)
    calls: dict[str, Call] = {"": ours}
    for peer in peers:
        if direction not in peer.directions:
            continue
        reason = peer.too_much(case, direction)
        if reason is not None:
            log.info("left out: %s at %s %d x %d x %d: %s", peer.name, direction, *case[1:4], reason)
            continue
        try:
            call = peer.make(case, inputs, direction)
            theirs = call()
            # the gradients of peers come in orders and layouts of their own
            if direction == "forward" and peer.same_function and (peer.float32_inside or case.dtype == torch.float32):
                compare(peer.name, ours(), theirs)
        except CheckError:
            raise
        except Exception as error:  # a peer's failure, memory most of all, is said and leaves ours and the others
            _tell_failure(peer, case, error)
            continue
        calls[peer.name] = call
        del theirs
    elsewhere = {peer.name: calls.pop(peer.name) for peer in peers if peer.on_cpu and peer.name in calls}
    times = time_in_turns(calls, case.device, quick) | time_in_turns(elsewhere, torch.device("cpu"), quick)
    mine = times.pop("")
    for name in list(times) or [""]:
        yield make_row(case, direction, name, mine, times.get(name), floors, peak)


def _passes(peer: Peer, plan: Plan, device: torch.device) -> bool:
    try:
        check_peer(peer, plan, device)
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        log.warning("left out: %s (%s) failed: %s", peer.name, peer.op, _first_line(error))
        return False
    return True


def _tell_failure(peer: Peer, case: Case, error: Exception) -> None:
    log.warning("left out: %s at %d x %d x %d failed: %s", peer.name, *case[1:4], _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _clear() -> None:
    """Give memory back between cases."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
