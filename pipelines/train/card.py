"""The model card: what the model is, what it was trained on and how, what it reaches and what it is not good for.

Every figure comes from the record of the run (`record.json`), which stands beside the card.
"""

from typing import Any

from jinja2 import Environment, StrictUndefined

CARD = """\
---
license: apache-2.0
library_name: mamba-seq
tags: [mamba, dna, genomics, classification]
---
# {{ name }}

{{ summary }}

```bash
mamba-seq classify genomes.fa -m {{ name }}
```

## Accuracy on held-out regions

Windows of the test regions, which no training or validation window touches, as many of each class. They are drawn at random and
overlap: the column "independent" says how many can be independent of each other, no more of a class than fit side by side into its
test regions, and the intervals (Wilson, 95 %) are those of so many windows.
The baseline, on the same windows: {{ baselines }}.

| length | accuracy | 95 % interval | windows | independent | k-mer baseline |
|---:|---:|---:|---:|---:|---:|
{% for row in results -%}
| {{ "{:,}".format(row.length) }} | {{ "%.4f" | format(row.accuracy) }} | {{ "%.4f" | format(row.low) }} to {{ "%.4f" | format(row.high) }} \
| {{ "{:,}".format(row.windows) }} | {{ "{:,}".format(row.independent) }} \
| {% if row.baseline is none %}not measured{% else %}{{ "%.4f" | format(row.baseline) }}{% endif %} |
{% endfor %}

Longer sequences are read in windows of {{ "{:,}".format(context) }} bases, both strands, and the evidence is averaged.

![Confusion matrix](confusion.png)

Confusion at {{ "{:,}".format(confusion_length) }} bases: truth down, prediction across.

## Classes

{% for label in labels %}{{ loop.index0 }}. *{{ label | replace("_", " ") }}*
{% endfor %}

## Data

{{ data_source }}

Licence: {{ data_licence }}

Split: {{ split }} `splits.tsv` lists every region.

## Training

| | |
|---|---|
| parameters | {{ "{:,}".format(parameters) }} |
| architecture | {{ model.n_layer }} Mamba blocks, width {{ model.d_model }}, state size {{ model.d_state }}, convolution {{ model.d_conv }}; {{ pooling }} pooling |
| steps | {{ "{:,}".format(steps) }} of {{ "{:,}".format(batch_tokens) }} bases, windows of {{ lengths }} |
| optimiser | AdamW, learning rate {{ optim.lr }} (warm-up {{ optim.warmup_steps }} steps, cosine to {{ optim.min_lr }}), weight decay {{ optim.weight_decay }}, clip {{ optim.grad_clip }} |
| seed | {{ seed }} (weights), {{ data_seed }} (data) |
| hardware | {{ hardware }}, {{ precision }} |
| time | {{ "%.0f" | format(minutes) }} minutes |
| versions | {{ versions }} |
| date | {{ date }} |

`recipe.yaml` holds every field; `mamba-seq train {{ name }} -o RUN --data.root FOLDER` trains it again.

![Loss and accuracy](curves.png)

## Limits

{{ limits }}
"""


def render_card(record: dict[str, Any]) -> str:
    """Render the card of a run's record; a field that the record lacks is an error, not a gap."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(CARD).render(record)
