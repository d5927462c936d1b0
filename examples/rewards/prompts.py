"""r(q, p) of a saved predictor as a reward: a policy that reads a query and writes a prompt's name
gets its chance of a right answer.
"""

from laurel_prompts.predictor import Predictor

predictor = Predictor.load("prompts")


def chance(prompts, completions, **columns):
    """Predicted chances in [0, 1]; 0 for what is no prompt."""
    return predictor.reward(prompts, completions)
