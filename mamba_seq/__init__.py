"""mamba-seq."""
