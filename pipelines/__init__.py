"""What people run: classify, evaluate, train, and the command line over them (`mamba_seq.pipelines.cli`)."""
