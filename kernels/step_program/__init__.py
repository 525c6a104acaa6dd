"""A step of a whole network as a program of small operators, run for many sequences at a time on the CPU.

A step of a small network is some hundreds of operators of a microsecond or less, and Python needs several for each.
So `Builder` writes the operators of each phase of a period once, as rows of integers, with the weights packed for the
loops that read them, and `StepProgram` runs any number of positions of them in one call, without Python in between:
the interpreter is `_cpu_kernels.py`. What the operators compute is what the layers of the backbone do; the definition
is the `step` of the model that the program was written for.

There is no form for GPUs, where launches are captured instead.
"""

from mamba_seq.kernels._drawing import Drawing
from mamba_seq.kernels.step_program.builder import Builder, Vector
from mamba_seq.kernels.step_program.cpu import StepProgram

__all__ = ["Builder", "Drawing", "StepProgram", "Vector"]
