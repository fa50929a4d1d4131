"""Block numbers of an aligned Xception-65 in the PyTorch ports that count all blocks in a row."""

from __future__ import annotations

import re
from collections.abc import Callable

STARTS = {"entry": 0, "middle": 3, "exit": 19}
"""Number of blocks before the first of each flow; block 20 is the last, and what is our second exit block is no block
there but three separable convolutions, conv3 to conv5."""

BLOCK = r"backbone\.(entry|middle|exit)\.block(\d+)"
LAST = r"backbone\.exit\.block2\.sep(\d)"


def block_name(rest: Callable[[int, re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
    """Target of a rule: `backbone.blockN.` and what `rest` makes of that number and the match."""

    def name(match: re.Match[str]) -> str:
        number = STARTS[match[1]] + int(match[2])
        return f"backbone.block{number}.{rest(number, match)}"

    return name
