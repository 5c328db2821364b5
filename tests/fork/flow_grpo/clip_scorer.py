"""A fork's own file of a name that we have too."""

raise RuntimeError("our map scorers must not import a fork's clip_scorer")
