"""The machines behind distinctiveness (2): gradients, a language model as judge, or the user's own function."""
