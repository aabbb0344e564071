"""How many operations the encoder takes, by its shapes: a lower bound on its time on a machine whose peak rate is known."""

WINDOW, HEAD = 14, 64
# width, blocks, global blocks
ARCHITECTURES = {"vit_b": (768, 12, 4), "vit_l": (1024, 24, 4), "vit_h": (1280, 32, 4)}


def encoder_operations(arch, size):
    """Multiplications and additions for one grey image; of the padding tokens, only their part as keys counts.

    Counts linear layers, relative positions and both products of the attention, patches and neck; leaves out norms, softmax and GELU.
    """
    width, blocks, global_blocks = ARCHITECTURES[arch]
    grid = size // 16
    tokens = grid * grid
    heads = width // HEAD
    linear = 12 * width * width * 2 * tokens * blocks

    def attention(side):
        return tokens * heads * HEAD * 2 * (2 * side * side + 2 * (2 * side - 1))

    attentions = attention(grid) * global_blocks + attention(WINDOW) * (blocks - global_blocks)
    patches = 2 * tokens * 256 * width
    neck = 2 * tokens * 256 * (width + 9 * 256)
    return linear + attentions + patches + neck
