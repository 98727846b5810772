"""Draw the cross-attention of a translation as text: one head, or the mean over all layers and heads.

Run `python examples/attention_maps.py MODEL TEXT [LAYER HEAD]` with the folder of a translation model, such as
`python examples/attention_maps.py runs/numerals/model einundzwanzig`.
"""

import sys

from transformer_jax import load

SHADES = " .:-=+*#%@"


def draw(source, target, weights):
    """A row per target piece and a column per source piece, darker for larger weights [T, S]."""
    width = max(map(len, target))
    rows = [
        f"{piece:>{width}} |{''.join(SHADES[min(int(w * len(SHADES)), len(SHADES) - 1)] * 2 for w in row)}|"
        for piece, row in zip(target, weights, strict=True)
    ]
    legend = [f"{' ' * width}  {'  ' * i}{piece}" for i, piece in enumerate(source)]
    return "\n".join([*legend, *rows])


def main(path, text, layer=None, head=None):
    """Draw the attention of a text's translation; layers and heads count from 0."""
    [[best]] = load(path).translate([text], return_attention=True)
    source, target, weights = best.alignment  # weights: [layers, heads, target, source]
    chosen = weights.mean(axis=(0, 1)) if layer is None else weights[int(layer), int(head)]
    return draw(source, target, chosen)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
