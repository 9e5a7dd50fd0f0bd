"""What a token is."""

import enum


class Attribute(enum.IntFlag):
    """What a token is. Several may hold: a name such as `<|im_end|>` makes any token control."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 4
    USER_DEFINED = 8
    UNUSED = 16
    BYTE = 32
