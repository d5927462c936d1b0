"""laurel: Language-model Alignment Using REinforcement Learning.

sample x ~ policy or data  ->  score R(x)  ->  weigh A(x)  ->  maximise A(x) log pi(x)
"""

from laurel.core.errors import LaurelError, UsageError
from laurel.core.result import Abstain, Failed, Result, Score
from laurel.core.sample import Batch, Group, Key, Message, Sample

__version__ = "0.1.0"

__all__ = ["Abstain", "Batch", "Failed", "Group", "Key", "LaurelError", "Message", "Result", "Sample", "Score", "UsageError"]
