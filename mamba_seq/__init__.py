"""mamba-seq: selective state-space models for sequences too long for attention.

The whole public surface is below. Names load their module when first used (PEP 562), so that `import mamba_seq`, and
with it the command line, costs no import of torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mamba_seq._version import __version__

if TYPE_CHECKING:
    from mamba_seq.backbone import Backbone
    from mamba_seq.block import Mamba, MambaState
    from mamba_seq.config import MambaConfig, ModelConfig, SaShiMiConfig
    from mamba_seq.errors import HubError, ModelError, UnknownModelError
    from mamba_seq.heads import (
        CTCModel,
        LanguageModel,
        MultiLabelClassifier,
        SequenceClassifier,
        SequenceRegressor,
        TokenClassifier,
        TokenRegressor,
    )
    from mamba_seq.interop import export_hf, export_mamba_ssm
    from mamba_seq.loading import from_pretrained
    from mamba_seq.sashimi import SaShiMi, SaShiMiState

_HOME = {
    "MambaConfig": "config",
    "ModelConfig": "config",
    "SaShiMiConfig": "config",
    "SaShiMi": "sashimi",
    "SaShiMiState": "sashimi",
    "Mamba": "block",
    "MambaState": "block",
    "Backbone": "backbone",
    "SequenceClassifier": "heads",
    "MultiLabelClassifier": "heads",
    "SequenceRegressor": "heads",
    "TokenClassifier": "heads",
    "TokenRegressor": "heads",
    "CTCModel": "heads",
    "LanguageModel": "heads",
    "from_pretrained": "loading",
    "export_hf": "interop",
    "export_mamba_ssm": "interop",
    "HubError": "errors",
    "ModelError": "errors",
    "UnknownModelError": "errors",
}

__all__ = [
    "Backbone",
    "CTCModel",
    "HubError",
    "LanguageModel",
    "Mamba",
    "MambaConfig",
    "MambaState",
    "ModelConfig",
    "ModelError",
    "MultiLabelClassifier",
    "SaShiMi",
    "SaShiMiConfig",
    "SaShiMiState",
    "SequenceClassifier",
    "SequenceRegressor",
    "TokenClassifier",
    "TokenRegressor",
    "UnknownModelError",
    "__version__",
    "export_hf",
    "export_mamba_ssm",
    "from_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"mamba_seq.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
