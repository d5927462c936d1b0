"""What votes say: agreement, labels, skill, the scores of models, and the report."""
