"""Functions with the names and signatures of other packages' losses."""
