"""One colour for each arm and each gap code, the same on every page and in every figure.

Mid-tones: at least 3:1 on white and on black, so that one table serves by day and by night.
"""

ARMS = {"base": "#8a6d3b", "sft": "#5f7a8c", "sft-steps": "#767676", "sft-flops": "#2f86c9",
        "joint": "#d1432f", "wmss": "#2e8b57", "wmss-both": "#2e8b57", "wmss-mask": "#7b6fd0",
        "frozen": "#b26a00", "permuted": "#b0479a", "temperature": "#0a8f8f",
        "smoothing": "#6b8e23", "weights-only": "#4169e1", "weak": "#a0785a", "fused": "#c25b6b",
        "dft": "#8f6fb0", "focal": "#3f8f5f", "gce": "#c2571a", "confidence": "#5b7fb5",
        "distilled": "#a3552f", "averaged": "#4a8a8a"}
CODES = ("#767676", "#2e8b57", "#d1432f", "#b26a00")        # of the gap codes 0 to 3
