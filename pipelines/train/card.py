"""The model card: what the model is, what it was trained on and how, what it reaches and what it is not good for.

Every figure comes from the record of the run (`record.json`), which stands beside the card.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

CARD = Path(__file__).with_name("card.md.jinja")
AUDIO_CARD = Path(__file__).with_name("audio_card.md.jinja")
WORD_CARD = Path(__file__).with_name("word_card.md.jinja")
LANGUAGE_CARD = Path(__file__).with_name("language_card.md.jinja")
SYNTHETIC_CARD = Path(__file__).with_name("synthetic_card.md.jinja")


def render_card(record: dict[str, Any], card: Path = CARD) -> str:
    """Render the card of a run's record; a field that the record lacks is an error, not a gap."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(card.read_text(encoding="utf-8")).render(record)
