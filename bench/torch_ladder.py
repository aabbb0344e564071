"""The stage-two model in PyTorch: that of this repository's Python package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
from sam_ladder.model import LadderSam, LayerNorm2d, Sam, ladder_loss

__all__ = ["LadderSam", "LayerNorm2d", "Sam", "ladder_loss"]
