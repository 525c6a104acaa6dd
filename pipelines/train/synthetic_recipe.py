"""The recipe of a synthetic task: what is drawn, how long it is, when it counts as solved."""

import dataclasses
from typing import Literal

from mamba_seq.config import MambaConfig
from mamba_seq.data_prep.synthetic import Task, TaskName, make_task
from mamba_seq.pipelines.train.recipe_fields import BaseRecipe


@dataclasses.dataclass(kw_only=True)
class SyntheticDataConfig:
    """The task and its samples, all of them made when they are needed."""

    task: TaskName
    """induction-heads or selective-copying."""
    length: int
    """Positions of a training sample; in copying those before the markers."""
    vocab_size: int = 16
    """Tokens in all: the special one, or noise and marker, included."""
    memorise: int = 1
    """Tokens to remember, each of them an answer; induction-heads have one."""
    batch_size: int = 8
    """Samples of a training step."""
    seed: int = 0
    """Seed of all samples."""

    def __post_init__(self) -> None:
        task = self.make()
        if self.length < task.shortest():
            raise ValueError(f"data.length is {self.length}, expected at least {task.shortest()} for {self.task}")
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size is {self.batch_size}, expected at least 1")
        if not 0 <= self.seed < 1 << 62:
            raise ValueError(f"data.seed is {self.seed}, expected 0 to 2^62 - 1")

    def make(self) -> Task:
        """Return the task."""
        return make_task(self.task, self.vocab_size, self.memorise, self.seed)


@dataclasses.dataclass(kw_only=True)
class LengthsConfig:
    """Lengths that a model is measured at."""

    lengths: list[int]
    """Lengths of the samples."""
    samples: int = 1024
    """Most samples of a length."""
    fewest: int = 16
    """Fewest samples of a length, whatever `positions` says."""
    positions: int = 1 << 24
    """Positions of all samples of a length, about: long samples are fewer."""

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths is {self.lengths}, expected at least one, each at least 1")
        for name in ("samples", "fewest", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")

    def count(self, length: int) -> int:
        """Return the number of samples of a length."""
        return min(self.samples, max(self.fewest, self.positions // length))


@dataclasses.dataclass(kw_only=True)
class SolvedConfig:
    """When training stops before its last step."""

    accuracy: float = 1.0
    """Accuracy at every length of the validation, at least."""
    validations: int = 3
    """Validations in a row that reach it; 0 never stops before the last step."""

    def __post_init__(self) -> None:
        if not 0 < self.accuracy <= 1:
            raise ValueError(f"solved.accuracy is {self.accuracy}, expected above 0, at most 1")
        if self.validations < 0:
            raise ValueError(f"solved.validations is {self.validations}, expected 0 or more")


@dataclasses.dataclass(kw_only=True)
class StageConfig:
    """A first stage of training, at a shorter length than the task's: what is learnt there is where the next begins.

    Optimiser and batch are those of the run; the schedule begins anew in every stage.
    """

    length: int
    """Positions of its samples; it is validated at this length alone."""
    steps: int
    """Most steps."""
    min_lr: float = 0.0
    """Learning rate at the last of them, if it comes to that."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    accuracy: float = 0.99
    """Accuracy of the validation that ends it."""
    validations: int = 2
    """Validations in a row that reach it; 0 never ends it before its last step."""
    val_every: int = 250
    """Steps between two validations."""

    def __post_init__(self) -> None:
        # what else may be wrong is found by the configs that it becomes
        if self.length < 1 or self.val_every < 1:
            raise ValueError(f"a stage has length {self.length}, val_every {self.val_every}, expected at least 1")


@dataclasses.dataclass(kw_only=True)
class SyntheticRecipe(BaseRecipe):
    """A training run of a synthetic task, from nothing to a saved model and its accuracy by length."""

    kind: Literal["synthetic"] = "synthetic"
    """Tells this recipe from those of DNA and sound."""
    model: MambaConfig
    """The backbone."""
    data: SyntheticDataConfig
    """Task and training samples."""
    validation: LengthsConfig
    """What is looked at in training, to stop when it is solved."""
    evaluation: LengthsConfig
    """What the finished model is measured on: other samples."""
    solved: SolvedConfig = dataclasses.field(default_factory=SolvedConfig)
    """When it stops."""
    stages: list[StageConfig] = dataclasses.field(default_factory=list)
    """Stages at shorter lengths, in this order, before training at `data.length`, which all other fields are about."""
    label_smoothing: float = 0.0
    """Part of each target that is spread evenly over all tokens. With some, the best logits are finite: what the state
    loses on its way to the answer still costs something when every answer is right, and goes on being learnt."""
    embedding_std: float = 1.0
    """Standard deviation of the embedding at the start."""
    cuda_graph: bool = True
    """Replay forward and backward pass of a step as one CUDA graph: on a GPU, in float32, with a model whose dropout is
    0. What is computed is the same."""
    chunk_tokens: int | None = None
    """Tokens that the evaluation has in memory at a time; by default 2^20 on a GPU and 2^16 on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.next_token_weight:
            raise ValueError(
                f"optim.next_token_weight is {self.optim.next_token_weight}, expected 0: only answers are learnt"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected 0 or more, below 1")
        if not self.embedding_std > 0:
            raise ValueError(f"embedding_std is {self.embedding_std}, expected above 0")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}, expected at least 1, or null")
        shortest = self.data.make().shortest()
        for name in ("validation", "evaluation"):
            lengths = getattr(self, name).lengths
            if min(lengths) < shortest:
                raise ValueError(
                    f"{name}.lengths has {min(lengths)}, expected at least {shortest} for {self.data.task}"
                )

        for number in range(len(self.stages)):
            try:
                self.stage(number)
            except ValueError as error:
                raise ValueError(f"stages[{number}]: {error}") from error

    def stage(self, number: int) -> "SyntheticRecipe":
        """Return what a stage is as a recipe of its own, without further stages.

        Raises:
            ValueError: for a stage that cannot be.
        """
        stage = self.stages[number]
        return dataclasses.replace(
            self,
            stages=[],
            data=dataclasses.replace(self.data, length=stage.length),
            validation=dataclasses.replace(self.validation, lengths=[stage.length]),
            solved=SolvedConfig(accuracy=stage.accuracy, validations=stage.validations),
            optim=dataclasses.replace(
                self.optim, steps=stage.steps, warmup_steps=stage.warmup_steps, min_lr=stage.min_lr, minutes=None
            ),
            val_every=min(stage.val_every, stage.steps),
        )

    @property
    def replays(self) -> bool:
        """Whether steps may be replayed: nothing in them is drawn, and no weight is rounded anew at every step."""
        return self.cuda_graph and self.precision == "32" and self.model.dropout == 0
