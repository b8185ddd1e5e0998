"""How a sequence is cut into blocks.

Blocks of `block_size` positions start at position 0 on the query axis and on the key axis; a partly
filled last block counts as one block. Key blocks have a side: the prompt or the generation (SparseD,
"isolated selection").
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockLayout:
    """How a sequence of `length` positions, the first `prompt_length` of them prompt, is cut into blocks.

    A key block is on the generation side if it starts at or after `prompt_length`; a block that straddles
    the boundary is prompt. If no block starts at or after the boundary, the last block alone is
    generation, so the generation side is never empty (the prompt side may be).

    Raises ValueError for a length or block size below 1, or a prompt that does not fit into the sequence.
    """

    length: int
    prompt_length: int
    block_size: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be at least 1 token, not {self.length}.")
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1 token, not {self.block_size}.")
        if not 0 <= self.prompt_length <= self.length:
            raise ValueError(
                f"prompt_length must lie between 0 and the length {self.length}, not {self.prompt_length}."
            )

    @property
    def blocks(self) -> int:
        """Blocks on either axis, n = ceil(length / block_size)."""
        return -(-self.length // self.block_size)

    @property
    def prompt_blocks(self) -> int:
        """Key blocks on the prompt side; they come first: 0 … prompt_blocks − 1."""
        return min(-(-self.prompt_length // self.block_size), self.blocks - 1)

    @property
    def generation_blocks(self) -> int:
        """Key blocks on the generation side: prompt_blocks … blocks − 1. At least one."""
        return self.blocks - self.prompt_blocks

    @property
    def generation_query_blocks(self) -> int:
        """Query blocks that hold a generation position: the last ones, a block that straddles the boundary included."""
        return self.blocks - self.prompt_length // self.block_size

    def start_of_last(self, blocks: int) -> int:
        """Where the last `blocks` query blocks begin; one past the last position for none."""
        return min((self.blocks - blocks) * self.block_size, self.length)

    @property
    def last_block_rows(self) -> int:
        """Positions in the last block, 1 … block_size."""
        return self.length - (self.blocks - 1) * self.block_size

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(first position, one past the last position) of every block, in order."""
        size = self.block_size
        return tuple((start, min(start + size, self.length)) for start in range(0, self.length, size))
