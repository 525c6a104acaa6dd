"""What follows a step of a language model, as one launch: logits, the draw of a token, its embedding, and the records.

The definition is `mamba_seq.sampling.sample` on the logits of torch.nn.functional.linear. `triton.py` launches the
kernel of `_triton_kernels.py`; there is no form for the CPU, where launches cost nothing.
"""
