"""The loss of a step of a synthetic task, and its replay on a GPU as one CUDA graph.

A step of a model this small is some hundreds of kernels of microseconds each, and eager Python takes longer to launch
them than they run. Its shapes never change, and its samples are functions of their numbers, so that all of it, samples
included, is recorded once and replayed.
"""

import logging
from typing import cast

import torch
from torch import Tensor, nn

from mamba_seq.data_prep.synthetic import Task
from mamba_seq.heads import LanguageModel
from mamba_seq.heads.losses import cross_entropy

log = logging.getLogger("mamba_seq.train")

MOST_DIFFERENCE = 1e-2
"""Norm of the difference of replayed and eager gradients, as a part of the gradients' norm."""


class AnswerLoss(nn.Module):
    """The loss of the answers of samples of some numbers, and nothing else's.

    Args:
        model: the model.
        task: what is asked.
        length: of the samples.
        label_smoothing: part of each target that is spread evenly over all tokens.
    """

    def __init__(self, model: LanguageModel, task: Task, length: int, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.length = length
        self.label_smoothing = label_smoothing

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy in nats and the accuracy of training samples of numbers (B,)."""
        samples = self.task.samples("train", numbers, self.length)
        tokens = self.task.tokens(samples, "train", 0, self.task.positions(self.length))
        hidden = self.model.backbone(self.model.embed(tokens))[:, -self.task.memorise :]
        logits = self.model.read(hidden)
        loss = cross_entropy(logits, samples.answers, label_smoothing=self.label_smoothing)
        return loss, (logits.argmax(dim=-1) == samples.answers).float().mean()


def recorded(step: AnswerLoss, numbers: Tensor) -> AnswerLoss:
    """Record forward and backward pass for batches like `numbers` (B,), and return the step that replays them.

    Where that fails, or gives other gradients, the step comes back as it is, and a warning says why: it is only slower.
    """
    plain = AnswerLoss(step.model, step.task, step.length, step.label_smoothing)
    parameters = list(step.parameters())
    try:
        # torch's stubs leave out that a module comes back where one was given
        replayed = cast("AnswerLoss", torch.cuda.make_graphed_callables(step, (numbers.clone(),), 3, True))
        pairs = [torch.autograd.grad(each(numbers)[0], parameters, allow_unused=True) for each in (replayed, plain)]
        difference = _norm([a - b for a, b in zip(*pairs, strict=True) if a is not None and b is not None])
        part = float(difference / _norm([b for b in pairs[1] if b is not None]).clamp(min=1e-30))
    except Exception as error:  # whatever it is, the steps can be done without
        log.warning("no CUDA graph of a step (%s): it runs eagerly", (str(error).splitlines() or [repr(error)])[0])
        return plain
    if not part <= MOST_DIFFERENCE:
        log.warning("the CUDA graph of a step has gradients that differ by %.1e: it runs eagerly", part)
        return plain
    log.info("steps are replayed as a CUDA graph (gradients within %.1e of eager ones)", part)
    return replayed


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().double().square().sum() for tensor in tensors]).sum().sqrt()
