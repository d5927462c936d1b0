"""How cheerful is a text? VADER's compound score (Hutto and Gilbert 2014), from the package
vaderSentiment.
"""

try:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "this reward needs the package vaderSentiment: pip install vaderSentiment"
    ) from None

_ANALYZER = SentimentIntensityAnalyzer()


def vader(completions, **columns):
    """The compound score of each completion, from -1 (gloomy) to 1 (cheerful). Messages are judged
    by their contents.
    """
    texts = [
        text if isinstance(text, str) else " ".join(turn["content"] for turn in text)
        for text in completions
    ]
    return [_ANALYZER.polarity_scores(text)["compound"] for text in texts]
