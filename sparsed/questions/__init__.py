"""Questions about an invented world, in prompts of any length, with their right answers."""

from sparsed.questions.build import Prompt, build_prompt
from sparsed.questions.lengths import LENGTHS, token_budget
from sparsed.questions.score import exact_match, facts_right, nearest
from sparsed.questions.world import KINDS

__all__ = ["KINDS", "LENGTHS", "Prompt", "build_prompt", "exact_match", "facts_right", "nearest", "token_budget"]
