"""One model, many inputs and radii: run, stored, resumed, summarised, compared, exported and reported."""
