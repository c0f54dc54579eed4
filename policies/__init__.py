"""The model as the learner sees it."""
