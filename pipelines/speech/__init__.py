"""How good generated speech is: scores of clips by a classifier that hears words, and the likelihood of recordings.

scores        probabilities and features -> FID, Inception Scores, AM score, agreement
intervals     the same of clips drawn again -> 95 % intervals
classifier    `-m` -> what hears clips: ours, or the published one of SC09
sc09          that one: its network and its mel front end; sc09_checkpoint: its file, made safe
clips         folders -> clips with the labels that were asked for
measure       all of it -> the tables that `mamba-seq evaluate` writes
likelihood    a waveform model and recordings -> bits per sample, beside the levels' histogram
"""
