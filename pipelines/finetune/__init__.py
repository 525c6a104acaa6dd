"""Fine-tuning on labelled sequences of one's own, and prediction with what came of it.

run.py         a run and its folder, start to end         recipe.py   what decides a run
dataset.py     the data, read, inspected, split           batches.py  batches by length, as a Lightning datamodule
make_model.py  from a saved model or a recipe             module.py   the step, early stopping
lora.py        low-rank adapters through peft             scores.py   metrics of every task, with intervals
predictions.py outputs for examples                       finish.py   measurement, pictures, card
"""
