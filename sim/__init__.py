"""One machine plays everyone: the `tempt` command, simulations, baselines, results."""
