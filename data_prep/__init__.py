"""From files to tensors: sequences, windows, genomes, tables, audio, codecs, samplers and datamodules."""
