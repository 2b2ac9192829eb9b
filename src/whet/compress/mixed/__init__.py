"""Mixed precision as an integer program: which layer is stored and computed how, for the least cost within a budget of harm."""
