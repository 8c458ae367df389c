"""AnnData -> arrays, with every check of the input and its message."""
